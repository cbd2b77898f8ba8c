// SPDX-License-Identifier: Apache-2.0
// Layered trees, one launch per drafter call and one block per sequence. Between calls a sequence
// is the budget's best nodes so far, sorted by the total order, so that the place of a parent
// stands for its whole path: the order of candidates is that of two words.
#include <algorithm>
#include <simt.cuh>

#include "block_reduce.cuh"
#include "builders/check_build.h"
#include "builders/frontier.cuh"
#include "builders/lists.cuh"
#include "builders/select.cuh"
#include "builders/write_tree.cuh"
#include "shared/fixed_point.hd.h"
#include "shared/math.hd.h"
#include "unrolled.cuh"

namespace treespec::device {
namespace {

constexpr uint32_t kInfinite = 0x7F800000u;  // magnitude of an impossible score

struct Kept {
  uint32_t magnitude;
  int32_t depth, parent;  // parent: its place
  int32_t token, state;
  int32_t index;  // hand-over number, -1 until expanded
};

/// What is remembered of a sequence between calls.
struct Sequence {
  int32_t* budget;
  int32_t* num_kept;   // the root counted, place 0
  int32_t* num_calls;  // of the drafter, the one under way included
  int32_t* num_handed;
  int32_t* frontier_size;
  double* expected;   // acceptance after the last layer
  int32_t* frontier;  // [max_nodes], places
  Kept* kept;         // [max_nodes]

  static size_t bytes(int32_t max_nodes) {
    const size_t size = 32 + static_cast<size_t>(max_nodes) * (sizeof(int32_t) + sizeof(Kept));
    return (size + 7) / 8 * 8;
  }
  TREESPEC_DEVICE static Sequence at(void* workspace, int64_t bytes_each, int32_t max_nodes,
                                     int b) {
    char* memory = static_cast<char*>(workspace) + bytes_each * b;
    auto* word = reinterpret_cast<int32_t*>(memory + 8);
    return {word,     word + 1,
            word + 2, word + 3,
            word + 4, reinterpret_cast<double*>(memory),
            word + 6, reinterpret_cast<Kept*>(word + 6 + max_nodes)};
  }
};

struct BeginLayers {
  static constexpr int kThreads = 64;
  LayerOptions options;
  BuildRequest request;
  Trees trees;
  void* workspace;
  int64_t bytes_each;
  Frontier frontier;
  uint32_t* status;

  TREESPEC_DEVICE void operator()() const {
    const int b = simt::block();
    const Sequence s = Sequence::at(workspace, bytes_each, trees.max_nodes, b);
    const int32_t budget = budget_of(request, trees, b, status);
    const bool growing = budget > 0 && options.max_depth > 0 && options.max_calls > 0;
    if (simt::thread() == 0) {
      *s.budget = budget;
      *s.num_kept = 1;
      *s.num_calls = 1;
      *s.num_handed = 1;
      *s.frontier_size = growing ? 1 : 0;
      *s.expected = 0.0;
      s.frontier[0] = 0;
      s.kept[0] = {0, 0, 0, 0, 0, 0};
    }
    FrontierView::of_sequence(frontier, b).start<kThreads>(growing, root_token_of(request, b));
  }
};

/// A kept node or a candidate, to be sorted.
struct Item {
  uint64_t word;  // magnitude << 32 | depth << 16 | place of the parent
  uint32_t token;
  int32_t from;  // entry of the lists, or ~place of a kept node

  TREESPEC_DEVICE uint32_t magnitude() const { return static_cast<uint32_t>(word >> 32); }
  TREESPEC_DEVICE int32_t depth() const { return static_cast<int32_t>(word >> 16 & 0xFFFFu); }
  TREESPEC_DEVICE int32_t parent() const { return static_cast<int32_t>(word & 0xFFFFu); }
};

TREESPEC_DEVICE uint64_t item_word(uint32_t magnitude, int32_t depth, int32_t parent) {
  return static_cast<uint64_t>(magnitude) << 32 | static_cast<uint32_t>(depth << 16) |
         static_cast<uint32_t>(parent);
}

struct GrowLayer {
  static constexpr int kThreads = 512;
  static constexpr int kWarps = kThreads / simt::kWarpSize;
  static constexpr int kHeld = (kMostDrafted + 1 + kThreads - 1) / kThreads;

  LayerOptions options;
  float log_floor, log_width_ratio;
  ListSource lists;
  Trees trees;
  void* workspace;
  int64_t bytes_each;
  Frontier frontier;
  uint32_t* status;
  int32_t capacity;  // a power of two

  struct Shared {
    Item* item;  // [capacity]
    Buckets buckets;
    uint64_t* scratch;  // [kWarps]
    int32_t* place;     // [max_nodes]: of a kept node after the sort
    int32_t* count;     // may exceed the capacity: then what did not fit is lost

    TREESPEC_DEVICE Shared(char* memory, int32_t capacity, int32_t max_nodes) {
      item = reinterpret_cast<Item*>(memory);
      scratch = reinterpret_cast<uint64_t*>(item + capacity);
      buckets.size = reinterpret_cast<int32_t*>(scratch + kWarps);
      buckets.found = reinterpret_cast<Buckets::Found*>(buckets.size + kBuckets);
      place = buckets.size + kBuckets + 2;
      count = place + max_nodes;
    }
    static size_t bytes(int32_t capacity, int32_t max_nodes) {
      return sizeof(Item) * static_cast<size_t>(capacity) + 8 * kWarps +
             4 * static_cast<size_t>(kBuckets + 2 + max_nodes + 1);
    }
  };

  /// What candidates have to reach.
  struct Limit {
    uint64_t word = UINT64_MAX;
    float score = kImpossible;  // of floor and width_ratio
    TREESPEC_DEVICE void lower(uint64_t to) { word = to < word ? to : word; }
  };

  TREESPEC_DEVICE void operator()() const {
    const int b = simt::block();
    const Sequence s = Sequence::at(workspace, bytes_each, trees.max_nodes, b);
    const int32_t frontier_size = *s.frontier_size;
    if (frontier_size == 0) return;
    const Shared m(simt::shared_memory(), capacity, trees.max_nodes);
    const Lists source = Lists::of_sequence(lists, b);
    const int32_t num_kept = *s.num_kept, wanted = *s.budget + 1, num_calls = *s.num_calls;
    for (int32_t i = simt::thread(); i < num_kept; i += kThreads) {
      const Kept& node = s.kept[i];
      m.item[i] = {item_word(node.magnitude, node.depth, node.parent),
                   static_cast<uint32_t>(node.token), ~i};
    }
    if (simt::thread() == 0) *m.count = num_kept;
    simt::sync_block();
    Limit limit;
    limit.score = log_floor;
    if (num_kept == wanted) limit.word = m.item[num_kept - 1].word;
    const bool variable = options.width_ratio > 0.0 && num_calls > 1;
    if (variable) limit.score = best_child(m, s, source, limit, frontier_size) + log_width_ratio;
    int32_t count = gather(m, s, source, limit, num_kept, wanted, frontier_size, b);
    count = cut(m, count, wanted);
    keep(m, s, source, count);
    hand_over(m, s, count, wanted, num_calls, variable, b);
  }

 private:
  /// First entry of the list of frontier node i, else -1.
  TREESPEC_DEVICE static int32_t list_of(const Sequence& s, const Lists& source, int32_t i,
                                         bool& bad) {
    const Kept& node = s.kept[s.frontier[i]];
    return source.list_of(node.depth, node.state, i, bad);
  }
  TREESPEC_DEVICE int32_t children(const Lists& source) const {
    return source.width < options.width ? source.width : options.width;
  }
  /// Word of a child, UINT64_MAX for an impossible one.
  TREESPEC_DEVICE static uint64_t child_word(const Sequence& s, int32_t place, float logprob) {
    const Kept& node = s.kept[place];
    const uint32_t magnitude =
        shared::magnitude_of(shared::child_score(shared::score_of(node.magnitude), logprob));
    if (logprob == kImpossible || magnitude == kInfinite) return UINT64_MAX;
    return item_word(magnitude, node.depth + 1, place);
  }
  TREESPEC_DEVICE static bool reached(const Limit& limit, uint64_t word) {
    return word != UINT64_MAX && word <= limit.word &&
           shared::score_of(static_cast<uint32_t>(word >> 32)) >= limit.score;
  }

  /// The best score among the children of the frontier that reach the limit.
  TREESPEC_DEVICE float best_child(const Shared& m, const Sequence& s, const Lists& source,
                                   const Limit& limit, int32_t frontier_size) const {
    uint64_t best = kInfinite;
    for (int32_t i = simt::thread(); i < frontier_size; i += kThreads) {
      bool bad = false;
      const int32_t list = list_of(s, source, i, bad);
      if (list < 0) continue;
      const uint64_t word = child_word(s, s.frontier[i], source.logprob[list]);
      if (reached(limit, word) && word >> 32 < best) best = word >> 32;
    }
    best = simt::block_reduce<kThreads>(best, uint64_t{kInfinite}, simt::Min{}, m.scratch);
    return shared::score_of(static_cast<uint32_t>(best));
  }

  /// Adds what reaches the limit to the items; returns their number, more than `wanted` at most by
  /// what fits.
  TREESPEC_DEVICE int32_t gather(const Shared& m, const Sequence& s, const Lists& source,
                                 Limit& limit, int32_t count, int32_t wanted, int32_t frontier_size,
                                 int b) const {
    int32_t total = add_children(m, s, source, limit, 0, frontier_size, b);
    if (total <= capacity) return total;
    select(m, s, source, limit, count, wanted, frontier_size);
    drop_from(m, count);
    total = add_children(m, s, source, limit, 0, frontier_size, b);
    if (total <= capacity) return total;
    // Equal scores alone are too many: a few parents at a time, the first of the order first.
    drop_from(m, count);
    for (int32_t begin = 0; begin < frontier_size;) {
      const int32_t fitting = (capacity - count) / children(source);
      const int32_t end = fitting < frontier_size - begin ? begin + fitting : frontier_size;
      count = add_children(m, s, source, limit, begin, end, b);
      begin = end;
      if (count <= wanted) continue;
      count = cut(m, count, wanted);
      limit.lower(m.item[count - 1].word);
      drop_from(m, count);
    }
    return count;
  }

  TREESPEC_DEVICE int32_t add_children(const Shared& m, const Sequence& s, const Lists& source,
                                       const Limit& limit, int32_t begin, int32_t end,
                                       int b) const {
    bool bad_number = false, bad_row = false;
    for (int32_t i = begin + simt::warp(); i < end; i += kWarps) {
      const int32_t list = list_of(s, source, i, bad_row);
      if (list < 0) continue;
      const int32_t place = s.frontier[i];
      uint32_t passing = ~0u;
      // The list falls, so that those that pass come first.
      for (int32_t first = 0; passing == ~0u && first < children(source);
           first += simt::kWarpSize) {
        const int32_t k = first + simt::lane();
        const float logprob = k < children(source) ? source.logprob[list + k] : kImpossible;
        bad_number |= unsound(logprob);
        const uint64_t word = child_word(s, place, logprob);
        const bool pass = reached(limit, word);
        passing = simt::ballot(pass);
        int32_t at = 0;
        if (simt::lane() == 0) at = simt::atomic_add(m.count, simt::count_bits(passing));
        at = simt::shuffle(at, 0) + simt::count_bits(passing & ((1u << simt::lane()) - 1));
        if (!pass || at >= capacity) continue;
        m.item[at] = {word, static_cast<uint32_t>(source.token[list + k]), list + k};
      }
    }
    if (bad_number) simt::atomic_or(status + b, kNotANumber);
    if (bad_row) simt::atomic_or(status + b, kOutOfBounds);
    simt::sync_block();
    const int32_t total = *m.count;
    simt::sync_block();
    return total;
  }

  /// Lowers the limit to the `wanted`-th best score of the items and all children.
  TREESPEC_DEVICE void select(const Shared& m, const Sequence& s, const Lists& source, Limit& limit,
                              int32_t count, int32_t wanted, int32_t frontier_size) const {
    const uint32_t magnitude = select_magnitude<kThreads>(m.buckets, wanted, [&](auto look_at) {
      for (int32_t i = simt::thread(); i < count; i += kThreads) look_at(m.item[i].magnitude());
      for (int32_t i = simt::warp(); i < frontier_size; i += kWarps) {
        bool bad = false;
        const int32_t list = list_of(s, source, i, bad);
        for (int32_t k = simt::lane(); list >= 0 && k < children(source); k += simt::kWarpSize) {
          const uint64_t word = child_word(s, s.frontier[i], source.logprob[list + k]);
          if (!reached(limit, word)) break;
          look_at(static_cast<uint32_t>(word >> 32));
        }
      }
    });
    limit.lower((uint64_t{magnitude} << 32) + UINT32_MAX);
  }

  TREESPEC_DEVICE static void drop_from(const Shared& m, int32_t count) {
    if (simt::thread() == 0) *m.count = count;
    simt::sync_block();
  }

  /// Sorts the items; returns how many of them are kept.
  TREESPEC_DEVICE static int32_t cut(const Shared& m, int32_t count, int32_t wanted) {
    const int32_t padded = simt::padded_to_sort(count);
    for (int32_t i = count + simt::thread(); i < padded; i += kThreads) {
      m.item[i] = {UINT64_MAX, UINT32_MAX, 0};
    }
    simt::sort_block<kThreads>(m.item, padded, [](const Item& x, const Item& y) {
      return x.word != y.word ? x.word < y.word : x.token < y.token;
    });
    return count < wanted ? count : wanted;
  }

  /// Makes the first `count` items the kept nodes.
  TREESPEC_DEVICE void keep(const Shared& m, const Sequence& s, const Lists& source,
                            int32_t count) const {
    for (int32_t i = simt::thread(); i < count; i += kThreads) {
      if (m.item[i].from < 0) m.place[~m.item[i].from] = i;
    }
    simt::sync_block();
    Kept held[kHeld] = {};
    simt::unrolled<kHeld>([&](auto h) {
      const int32_t i = simt::thread() + h * kThreads;
      if (i >= count) return;
      const Item& item = m.item[i];
      const bool old = item.from < 0;
      held[h] = {item.magnitude(),
                 item.depth(),
                 m.place[item.parent()],
                 static_cast<int32_t>(item.token),
                 old ? s.kept[~item.from].state : source.state_of(item.from),
                 old ? s.kept[~item.from].index : -1};
    });
    simt::sync_block();
    simt::unrolled<kHeld>([&](auto h) {
      const int32_t i = simt::thread() + h * kThreads;
      if (i < count) s.kept[i] = held[h];
    });
    simt::sync_block();
  }

  /// Sum of probabilities in fixed point: no order of summation shows.
  TREESPEC_DEVICE static uint64_t mass_of(const Kept& node) {
    const auto score = static_cast<double>(shared::score_of(node.magnitude));
    return static_cast<uint64_t>(shared::to_raw_fixed(shared::exp_nonpositive(score)));
  }

  /// Decides whether the drafter is called again, and for which nodes.
  TREESPEC_DEVICE void hand_over(const Shared& m, const Sequence& s, int32_t count, int32_t wanted,
                                 int32_t num_calls, bool variable, int b) const {
    const FrontierView out = FrontierView::of_sequence(frontier, b);
    const bool full = count == wanted;
    const uint32_t theta = full ? s.kept[count - 1].magnitude : shared::magnitude_of(log_floor);
    const int32_t most = variable || options.width > out.max_nodes ? out.max_nodes : options.width;
    const int32_t handed = *s.num_handed;
    const double expected_before = *s.expected;
    uint64_t kept_mass = 0, open_mass = 0;
    int32_t num_open = 0;
    for (int32_t first = 0; first < count; first += kThreads) {
      const int32_t i = first + simt::thread();
      const bool open = i > 0 && i < count && is_open(s.kept[i], theta, num_calls);
      const auto sum = simt::block_prefix_sum<kThreads>(uint64_t{open}, m.scratch);
      const auto at = num_open + static_cast<int32_t>(sum.before);
      num_open += static_cast<int32_t>(sum.total);
      if (i > 0 && i < count) kept_mass += mass_of(s.kept[i]);
      if (!open || at >= most) continue;
      open_mass += mass_of(s.kept[i]);
      s.frontier[at] = i;
    }
    kept_mass = simt::block_reduce<kThreads>(kept_mass, uint64_t{0}, simt::Sum{}, m.scratch);
    open_mass = simt::block_reduce<kThreads>(open_mass, uint64_t{0}, simt::Sum{}, m.scratch);
    if (num_open > most) num_open = most;
    bool another = num_calls < options.max_calls;
    const double expected = shared::from_raw_fixed(kept_mass);
    if (options.width_ratio > 0.0) {
      another = another && !full;
    } else if (options.threshold > 0.0) {
      another = another && expected - expected_before > options.threshold;
    }
    // No deeper layer can add more than the mass of its parents.
    if (options.threshold > 0.0 && shared::from_raw_fixed(open_mass) <= options.threshold) {
      another = false;
    }
    if (!another) num_open = 0;
    for (int32_t i = simt::thread(); i < num_open; i += kThreads) {
      Kept& node = s.kept[s.frontier[i]];
      node.index = handed + i;
      out.put(i, {handed + i, s.kept[node.parent].index, node.token, node.depth, node.state});
    }
    out.end_at<kThreads>(num_open);
    if (simt::thread() != 0) return;
    *s.num_kept = count;
    *s.num_calls = num_calls + 1;
    *s.num_handed = handed + num_open;
    *s.frontier_size = num_open;
    *s.expected = expected;
  }

  TREESPEC_DEVICE bool is_open(const Kept& node, uint32_t theta, int32_t num_calls) const {
    if (node.depth >= options.max_depth) return false;
    if (options.constant_growth) return node.index < 0;
    return node.depth == num_calls && node.magnitude < theta;
  }
};

struct FinishLayers {
  static constexpr int kThreads = 256;
  BuildRequest request;
  Trees trees;
  void* workspace;
  int64_t bytes_each;

  TREESPEC_DEVICE void operator()() const {
    const int b = simt::block();
    const Sequence s = Sequence::at(workspace, bytes_each, trees.max_nodes, b);
    const TreeView tree = TreeView::of_sequence(trees, b);
    const int32_t num_nodes = *s.num_kept;
    write_nodes<kThreads>(tree, num_nodes, [&](int32_t i) {
      const Kept& node = s.kept[i];
      if (i == 0) return TreeNode{root_token_of(request, b), -1, 0, 0.0f};
      return TreeNode{node.token, node.parent, node.depth, shared::score_of(node.magnitude)};
    });
    write_children_as_draws<kThreads>(
        tree, num_nodes, [&s](int32_t i) { return s.kept[i].parent; },
        reinterpret_cast<uint32_t*>(simt::shared_memory()));
  }
};

/// Room for the budget and a list, and never so little that few parents fit.
int32_t capacity_for(int32_t max_nodes, int32_t width) {
  int32_t capacity = 1024;
  while (capacity < max_nodes + width) capacity *= 2;
  return capacity;
}

/// Of a probability that is 0 where it bounds nothing.
float log_or_lowest(double bound) {
  return bound > 0.0 ? static_cast<float>(shared::log_unit(bound)) : kImpossible;
}

void check_options(const char* who, const LayerOptions& options, const Trees& trees,
                   const Frontier& frontier) {
  TREESPEC_CHECK(options.max_depth >= 0 && options.max_calls >= 0 && options.width >= 1, who,
                 ": options must have max_depth >= 0, max_calls >= 0 and width >= 1, got ",
                 options.max_depth, ", ", options.max_calls, " and ", options.width);
  TREESPEC_CHECK(options.threshold >= 0.0, who, ": threshold must be >= 0, got ",
                 options.threshold);
  TREESPEC_CHECK(options.width_ratio >= 0.0 && options.width_ratio <= 1.0 &&
                     (options.width_ratio == 0.0 || !options.constant_growth),
                 who, ": width_ratio must be in [0, 1], and 0 with constant growth, got ",
                 options.width_ratio);
  TREESPEC_CHECK(options.floor >= 0.0 && options.floor < 1.0 &&
                     (options.floor == 0.0 || options.width_ratio == 0.0),
                 who, ": floor must be in [0, 1), and 0 with a width_ratio, got ", options.floor);
  const int32_t widest = options.width_ratio > 0.0 ? trees.max_nodes - 1
                                                   : std::min(options.width, trees.max_nodes - 1);
  TREESPEC_CHECK(frontier.max_nodes >= std::max(widest, 1), who,
                 ": frontier.max_nodes must be at least ", std::max(widest, 1), ", got ",
                 frontier.max_nodes);
}

}  // namespace

size_t layers_workspace_bytes(int32_t batch, int32_t max_nodes) {
  return static_cast<size_t>(batch) * Sequence::bytes(max_nodes);
}

void begin_layers(Stream stream, const LayerOptions& options, const BuildRequest& request,
                  const Trees& trees, void* workspace, const Frontier& frontier, uint32_t* status) {
  check_trees("begin_layers", trees);
  check_options("begin_layers", options, trees, frontier);
  const auto bytes_each = static_cast<int64_t>(Sequence::bytes(trees.max_nodes));
  simt::launch(stream, {trees.batch},
               BeginLayers{options, request, trees, workspace, bytes_each, frontier, status});
}

void grow_layer(Stream stream, const LayerOptions& options, const ListSource& lists,
                const Trees& trees, void* workspace, const Frontier& frontier, uint32_t* status) {
  check_trees("grow_layer", trees);
  check_options("grow_layer", options, trees, frontier);
  check_lists("grow_layer", lists);
  LayerOptions bounded = options;
  if (lists.kind != SourceKind::kExpander) {
    bounded.max_depth = std::min(options.max_depth, lists.depth);
  }
  const auto bytes_each = static_cast<int64_t>(Sequence::bytes(trees.max_nodes));
  const int32_t capacity = capacity_for(trees.max_nodes, std::min(lists.width, options.width));
  simt::launch(stream, {trees.batch, 1, GrowLayer::Shared::bytes(capacity, trees.max_nodes)},
               GrowLayer{bounded, log_or_lowest(options.floor), log_or_lowest(options.width_ratio),
                         lists, trees, workspace, bytes_each, frontier, status, capacity});
}

void finish_layers(Stream stream, const BuildRequest& request, const void* workspace,
                   const Trees& trees) {
  check_trees("finish_layers", trees);
  const auto bytes_each = static_cast<int64_t>(Sequence::bytes(trees.max_nodes));
  constexpr size_t kPairs = 2 * kMostDrafted;  // padded to sort
  simt::launch(stream, {trees.batch, 1, kPairs * sizeof(uint32_t)},
               FinishLayers{request, trees, const_cast<void*>(workspace), bytes_each});
}

}  // namespace treespec::device
