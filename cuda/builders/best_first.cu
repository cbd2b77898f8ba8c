// SPDX-License-Identifier: Apache-2.0
// Best-first trees without a heap: one block per sequence, all in shared memory.
//
// A pool holds every prefix that may be among the budget's best. Nodes of it are expanded side by
// side, whatever reaches the limit joins it, and the limit rises: a histogram of scores bounds the
// budget-th best. When nothing is left to expand, one sort by the total order gives the ids. If the
// pool runs full, the budget-th best score is found exactly, by radix selection; if equal scores
// alone fill it, the sort cuts it to the budget, and the limit becomes a place in the total order.
// Nodes join in any order, but which are kept and how they are numbered is decided by the total
// order alone, so that the result is the heap's.
#include <algorithm>
#include <simt.cuh>

#include "block_reduce.cuh"
#include "builders/check_build.h"
#include "builders/lists.cuh"
#include "builders/select.cuh"
#include "builders/write_tree.cuh"
#include "unrolled.cuh"

namespace treespec::device {
namespace {

constexpr uint16_t kExpanded = 0x8000;  // beside the depth
constexpr int32_t kMostDepth = kExpanded - 1;

/// Score down, depth up, in one word; smaller is better.
TREESPEC_DEVICE uint64_t order_word(uint32_t magnitude, int32_t depth) {
  return static_cast<uint64_t>(magnitude) << 32 | static_cast<uint32_t>(depth);
}

/// Buckets of scores: eight for every factor of two of a magnitude from 2^-24 to 2^8.
constexpr int kBucketShift = 20;
constexpr int32_t kFirstBucket = (127 - 24) << 3;
TREESPEC_DEVICE int32_t bucket_of(uint32_t magnitude) {
  const int32_t bucket = static_cast<int32_t>(magnitude >> kBucketShift) - kFirstBucket;
  return bucket < 0 ? 0 : bucket < kBuckets ? bucket : kBuckets - 1;
}
/// The worst order word in a bucket.
TREESPEC_DEVICE uint64_t last_of_bucket(int32_t bucket) {
  if (bucket == kBuckets - 1) return UINT64_MAX;
  const auto end = static_cast<uint64_t>(bucket + 1 + kFirstBucket) << kBucketShift;
  return (end << 32) - 1;
}

/// What is worse is not among the best.
struct Limit {
  uint64_t word = UINT64_MAX;
  int32_t parent = INT32_MAX;  // of the node that has this word exactly
  int32_t ordered = 0;         // nodes before this one are in the total order

  TREESPEC_DEVICE bool reached_by(uint64_t child_word, int32_t node) const {
    return child_word < word || (child_word == word && (node >= ordered || node <= parent));
  }
  TREESPEC_DEVICE void lower(uint64_t to) {
    if (to >= word) return;
    word = to;
    parent = INT32_MAX;
  }
};

struct BestFirst {
  static constexpr int kThreads = 512;
  static constexpr int kWarps = kThreads / simt::kWarpSize;
  static constexpr int kMostKept = kMostDrafted + 1;
  static constexpr int kHeld = (kMostKept + kThreads - 1) / kThreads;

  ListSource lists;
  int32_t max_depth;
  BuildRequest request;
  Trees trees;
  uint32_t* status;
  int32_t capacity;

  /// Shared memory: the pool, as arrays, and what is sorted.
  struct Pool {
    uint64_t* item;  // magnitude << 32 | depth << 16 | index, to be sorted
    uint32_t* magnitude;
    int32_t* entry;  // of the lists of the sequence; node 0 is the root, without one
    uint16_t* depth;
    uint16_t* parent;  // index in the pool
    uint16_t* place;   // after a cut
    Buckets buckets;
    int32_t* count;  // may exceed the capacity: then what did not fit is lost
    int32_t* num_items;
    const int32_t* token;  // of an entry

    TREESPEC_DEVICE Pool(char* memory, int32_t size, const int32_t* token_of_entry)
        : token(token_of_entry) {
      item = reinterpret_cast<uint64_t*>(memory);
      magnitude = reinterpret_cast<uint32_t*>(item + simt::padded_to_sort(size));
      entry = reinterpret_cast<int32_t*>(magnitude + size);
      buckets.size = entry + size;
      buckets.found = reinterpret_cast<Buckets::Found*>(buckets.size + kBuckets);
      count = buckets.size + kBuckets + 2;
      num_items = count + 1;
      depth = reinterpret_cast<uint16_t*>(count + 2);
      parent = depth + size;
      place = parent + size;
    }
    static size_t bytes(int32_t size) {
      size_t padded = 2;
      while (padded < static_cast<size_t>(size)) padded *= 2;
      return 8 * padded + 14 * static_cast<size_t>(size) + 4 * (kBuckets + 4);
    }

    TREESPEC_DEVICE int32_t depth_of(int32_t i) const { return depth[i] & kMostDepth; }
    TREESPEC_DEVICE bool expanded(int32_t i) const { return (depth[i] & kExpanded) != 0; }
    TREESPEC_DEVICE uint64_t word(int32_t i) const { return order_word(magnitude[i], depth_of(i)); }
  };

  struct Node {
    uint32_t magnitude;
    int32_t entry;
    uint16_t depth, parent;
  };

  TREESPEC_DEVICE void operator()() const {
    const int b = simt::block();
    const Lists source = Lists::of_sequence(lists, b);
    const Pool pool(simt::shared_memory(), capacity, source.token);
    const int32_t given = request.node_budget[b];
    const int32_t most = trees.max_nodes - 1;
    const int32_t budget = given < 0 ? 0 : given < most ? given : most;
    if (simt::thread() == 0) {
      if (given != budget) simt::atomic_or(status + b, kOutOfBounds);
      pool.magnitude[0] = 0;
      pool.entry[0] = -1;
      pool.depth[0] = 0;
      pool.parent[0] = 0;
      *pool.count = 1;
    }
    count_buckets(pool, 1);
    const int32_t kept = grow(pool, source, budget + 1, b);
    write(pool, source, kept, b);
  }

  /// Returns the number of nodes, the root counted; they are first in the pool, in order.
  TREESPEC_DEVICE int32_t grow(const Pool& pool, const Lists& source, int32_t wanted, int b) const {
    Limit limit;
    int32_t cursor = 0;  // nodes before it are expanded
    int32_t count = 1;
    bool sound = true;
    while (cursor < count) {
      int32_t end = count;
      int32_t reached = expand(pool, source, limit, cursor, end, sound, b);
      if (reached > capacity) {
        select(pool, source, limit, cursor, count, wanted);
        drop_from(pool, count);
        reached = expand(pool, source, limit, cursor, end, sound, b);
      }
      if (reached > capacity) {
        drop_from(pool, count);
        if (count > wanted) {
          count = cut(pool, count, cursor, wanted, limit);
          cursor = 0;
          continue;
        }
        // Few enough that their children fit whatever they are.
        end = cursor + (capacity - count) / source.width;
        if (end > count) end = count;
        reached = expand(pool, source, limit, cursor, end, sound, b);
      }
      cursor = end;
      count = reached;
      if (count >= wanted) limit.lower(last_of_bucket(pool.buckets.holding(wanted).bucket));
    }
    return cut(pool, count, cursor, wanted, limit);
  }

  /// Appends the children of nodes begin ... end that reach the limit, a warp per node. Returns the
  /// number of nodes, more than the capacity if some did not fit.
  TREESPEC_DEVICE int32_t expand(const Pool& pool, const Lists& source, const Limit& limit,
                                 int32_t begin, int32_t end, bool& sound, int b) const {
    bool bad_number = false, bad_row = false;
    for (int32_t node = begin + simt::warp(); node < end; node += kWarps) {
      const int32_t list = list_to_read(pool, source, limit, node, bad_row);
      if (list < 0) continue;
      const int32_t depth = pool.depth_of(node);
      const float base = shared::score_of(pool.magnitude[node]);
      uint32_t passing = ~0u;
      // The list falls, so that those that pass come first.
      for (int32_t first = 0; passing == ~0u && first < source.width; first += simt::kWarpSize) {
        const int32_t k = first + simt::lane();
        const float logprob = k < source.width ? source.logprob[list + k] : kImpossible;
        bad_number |= unsound(logprob);
        const uint32_t magnitude = shared::magnitude_of(shared::child_score(base, logprob));
        const bool pass =
            logprob != kImpossible && limit.reached_by(order_word(magnitude, depth + 1), node);
        passing = simt::ballot(pass);
        int32_t at = 0;
        if (simt::lane() == 0) at = simt::atomic_add(pool.count, simt::count_bits(passing));
        at = simt::shuffle(at, 0) + simt::count_bits(passing & ((1u << simt::lane()) - 1));
        if (!pass || at >= capacity) continue;
        store(pool, at,
              {magnitude, list + k, static_cast<uint16_t>(depth + 1), static_cast<uint16_t>(node)});
        pool.buckets.add(bucket_of(magnitude));
      }
    }
    if (sound && (bad_number || bad_row)) {
      sound = false;
      simt::atomic_or(status + b, (bad_number ? kNotANumber : 0u) | (bad_row ? kOutOfBounds : 0u));
    }
    simt::sync_block();
    const int32_t reached = *pool.count;
    simt::sync_block();
    return reached;
  }

  /// First entry of the list of a node that is to be expanded, else -1.
  TREESPEC_DEVICE int32_t list_to_read(const Pool& pool, const Lists& source, const Limit& limit,
                                       int32_t node, bool& bad_row) const {
    const int32_t depth = pool.depth_of(node);
    if (pool.expanded(node) || depth >= max_depth || pool.word(node) > limit.word) return -1;
    const bool has_state = source.kind == SourceKind::kTransitions && node > 0;
    const int32_t state = has_state ? source.state_of(pool.entry[node]) : 0;
    return source.list_of(depth, state, 0, bad_row);
  }

  /// Lowers the limit to the `wanted`-th best score among the first `count` nodes and the children
  /// of those from `begin` on. There are at least `wanted`.
  TREESPEC_DEVICE void select(const Pool& pool, const Lists& source, Limit& limit, int32_t begin,
                              int32_t count, int32_t wanted) const {
    const uint32_t magnitude = select_magnitude<kThreads>(pool.buckets, wanted, [&](auto look_at) {
      for (int32_t i = simt::thread(); i < count; i += kThreads) look_at(pool.magnitude[i]);
      for (int32_t node = begin + simt::warp(); node < count; node += kWarps) {
        bool bad_row = false;
        const int32_t list = list_to_read(pool, source, limit, node, bad_row);
        const int32_t depth = pool.depth_of(node);
        const float base = shared::score_of(pool.magnitude[node]);
        for (int32_t k = simt::lane(); list >= 0 && k < source.width; k += simt::kWarpSize) {
          const float logprob = source.logprob[list + k];
          const uint32_t child = shared::magnitude_of(shared::child_score(base, logprob));
          if (logprob == kImpossible) break;
          if (!limit.reached_by(order_word(child, depth + 1), node)) break;
          look_at(child);
        }
      }
    });
    limit.lower((uint64_t{magnitude} << 32) + UINT32_MAX);
  }

  TREESPEC_DEVICE static Node load(const Pool& pool, int32_t i) {
    return {pool.magnitude[i], pool.entry[i], pool.depth[i], pool.parent[i]};
  }
  TREESPEC_DEVICE static void store(const Pool& pool, int32_t i, const Node& node) {
    pool.magnitude[i] = node.magnitude;
    pool.entry[i] = node.entry;
    pool.depth[i] = node.depth;
    pool.parent[i] = node.parent;
  }

  /// Forgets the nodes from `count` on.
  TREESPEC_DEVICE static void drop_from(const Pool& pool, int32_t count) {
    if (simt::thread() == 0) *pool.count = count;
    count_buckets(pool, count);
  }

  TREESPEC_DEVICE static void count_buckets(const Pool& pool, int32_t count) {
    pool.buckets.clear<kThreads>();
    for (int32_t i = simt::thread(); i < count; i += kThreads) {
      pool.buckets.add(bucket_of(pool.magnitude[i]));
    }
    simt::sync_block();
  }

  /// Keeps the best `wanted` nodes, sorted, and marks those before `cursor` as expanded. Returns
  /// how many there are; if enough, the limit becomes exact.
  TREESPEC_DEVICE static int32_t cut(const Pool& pool, int32_t count, int32_t cursor,
                                     int32_t wanted, Limit& limit) {
    if (simt::thread() == 0) *pool.num_items = 0;
    simt::sync_block();
    for (int32_t i = simt::thread(); i < count; i += kThreads) {
      const uint64_t word = pool.word(i);
      if (i < cursor) pool.depth[i] |= kExpanded;
      if (word > limit.word) continue;
      pool.item[simt::atomic_add(pool.num_items, 1)] =
          word >> 32 << 32 | (word & 0xFFFFu) << 16 | static_cast<uint32_t>(i);
    }
    simt::sync_block();
    const int32_t num_items = *pool.num_items;
    const int32_t padded = simt::padded_to_sort(num_items);
    for (int32_t i = num_items + simt::thread(); i < padded; i += kThreads) {
      pool.item[i] = UINT64_MAX;
    }
    simt::sort_block<kThreads>(pool.item, padded, [&pool](uint64_t x, uint64_t y) {
      return x >> 16 != y >> 16 ? x < y : before(pool, x, y);
    });
    const int32_t kept = num_items < wanted ? num_items : wanted;
    move_to_front(pool, kept);
    if (simt::thread() == 0) *pool.count = kept;
    count_buckets(pool, kept);
    if (kept == wanted) limit = {pool.word(kept - 1), pool.parent[kept - 1], kept};
    return kept;
  }

  /// The total order between nodes of one score and depth: that of their parents, then by token.
  TREESPEC_DEVICE static bool before(const Pool& pool, uint64_t x, uint64_t y) {
    auto i = static_cast<int32_t>(x & 0xFFFFu), j = static_cast<int32_t>(y & 0xFFFFu);
    while (i != j) {
      const int32_t p = pool.parent[i], q = pool.parent[j];
      if (p == q) return pool.token[pool.entry[i]] < pool.token[pool.entry[j]];
      const uint64_t u = pool.word(p), v = pool.word(q);
      if (u != v) return u < v;
      i = p;
      j = q;
    }
    return false;
  }

  /// Moves the first `kept` items to the front of the pool.
  TREESPEC_DEVICE static void move_to_front(const Pool& pool, int32_t kept) {
    Node held[kHeld] = {};
    for (int32_t i = simt::thread(); i < kept; i += kThreads) {
      pool.place[pool.item[i] & 0xFFFFu] = static_cast<uint16_t>(i);
    }
    simt::sync_block();
    simt::unrolled<kHeld>([&](auto h) {
      const int32_t i = simt::thread() + h * kThreads;
      if (i >= kept) return;
      held[h] = load(pool, static_cast<int32_t>(pool.item[i] & 0xFFFFu));
      held[h].parent = pool.place[held[h].parent];
    });
    simt::sync_block();
    simt::unrolled<kHeld>([&](auto h) {
      const int32_t i = simt::thread() + h * kThreads;
      if (i < kept) store(pool, i, held[h]);
    });
    simt::sync_block();
  }

  TREESPEC_DEVICE void write(const Pool& pool, const Lists& source, int32_t kept, int b) const {
    const TreeView tree = TreeView::of_sequence(trees, b);
    write_nodes<kThreads>(tree, kept, [&](int32_t i) {
      if (i == 0) {
        return TreeNode{request.root_token != nullptr ? request.root_token[b] : 0, -1, 0, 0.0f};
      }
      return TreeNode{source.token[pool.entry[i]], pool.parent[i], pool.depth_of(i),
                      shared::score_of(pool.magnitude[i])};
    });
    write_children_as_draws<kThreads>(
        tree, kept, [&pool](int32_t i) { return pool.parent[i]; },
        reinterpret_cast<uint32_t*>(pool.item));
  }
};

/// Room for the budget and a list, twice, and never so little that cuts are frequent.
int32_t capacity_for(int32_t max_nodes, int32_t width) {
  constexpr int32_t kLeast = 1024;
  return std::max(kLeast, max_nodes + 2 * std::max(max_nodes - 1, width));
}

}  // namespace

void build_best_first(Stream stream, const ListSource& lists, int32_t max_depth,
                      const BuildRequest& request, const Trees& trees, uint32_t* status) {
  check_trees("build_best_first", trees);
  check_lists("build_best_first", lists);
  TREESPEC_CHECK(lists.kind != SourceKind::kExpander,
                 "build_best_first: lists must be Marginals or Transitions");
  TREESPEC_CHECK(max_depth >= 0, "build_best_first: max_depth must be >= 0, got ", max_depth);
  TREESPEC_CHECK(lists.depth <= kMostDepth, "build_best_first: lists.depth must be at most ",
                 kMostDepth, ", got ", lists.depth);
  const int32_t capacity = capacity_for(trees.max_nodes, lists.width);
  simt::launch(
      stream, {trees.batch, 1, BestFirst::Pool::bytes(capacity)},
      BestFirst{lists, std::min(max_depth, lists.depth), request, trees, status, capacity});
}

}  // namespace treespec::device
