// SPDX-License-Identifier: Apache-2.0
// DySpec on the device: the node budget goes to the draws that the verifier will most likely look
// at. Per drafter call one block per frontier node takes its draws in advance, and one block per
// sequence makes those that reach the bar, which is the budget-th best slot.
#include <algorithm>
#include <simt.cuh>

#include "block_reduce.cuh"
#include "block_sort.cuh"
#include "builders/calibration.cuh"
#include "builders/check_build.h"
#include "builders/frontier.cuh"
#include "builders/pack_laws.cuh"
#include "builders/row_law.cuh"
#include "builders/select.cuh"
#include "builders/write_tree.cuh"

namespace treespec::device {
namespace {

constexpr int32_t kNotEvaluated = -1;

struct SlotNode {
  double value;  // of the slot that made it, known before the draw
  double first;  // of its own first slot
  int32_t token, parent, depth, state;
  float score;
  uint32_t slot;      // path slot: names the node's noise
  int32_t index;      // hand-over number, -1: not handed over
  int32_t draw;       // its place among the draws of its parent
  int32_t num_known;  // draws taken in advance
  int32_t num_drawn;  // those of them that are nodes
  int32_t law_size;
  int32_t id;   // in the final tree
  int32_t row;  // where its draws and its law are, once it was asked for
};

/// Sizes of the state of a sequence.
struct SlotSize {
  int32_t max_nodes, list_width;

  /// Of a call, nodes that reach the bar before it and new ones; and again as many of equal value.
  int32_t num_nodes() const { return 4 * max_nodes; }
  /// Behind as many draws of one node as the budget comes nothing that matters.
  int32_t num_draws() const { return std::max(1, std::min(list_width, max_nodes - 1)); }
};

/// The state of one sequence, in the workspace; offsets are computed on the host.
struct SlotLayout {
  struct Header {
    int32_t size, frontier_size, num_handed, budget;
  };
  int32_t max_nodes, list_width, num_nodes, num_draws;
  int64_t node, value, child_value, entry, frontier, free_row, node_of_id, law_token, law_prob,
      bytes_each;

  explicit SlotLayout(const SlotSize& size)
      : max_nodes(size.max_nodes),
        list_width(size.list_width),
        num_nodes(size.num_nodes()),
        num_draws(size.num_draws()) {
    const int64_t n = num_nodes, draws = n * num_draws, laws = n * list_width;
    node = 64;
    value = node + n * static_cast<int64_t>(sizeof(SlotNode));
    child_value = value + 8 * draws;
    entry = child_value + 8 * draws;
    frontier = entry + 4 * draws;
    free_row = frontier + 4 * n;
    node_of_id = free_row + 4 * n;
    law_token = node_of_id + 4 * max_nodes;
    law_prob = law_token + 4 * laws;
    bytes_each = (law_prob + 4 * laws + 15) / 16 * 16;
  }
};

struct Slots {
  SlotLayout::Header* header;
  SlotNode* node;
  double* value;        // [row, num_draws], of a slot
  double* child_value;  // [row, num_draws], of the first slot of the child it makes
  int32_t* entry;       // [row, num_draws], of the lists
  int32_t* frontier;    // [node]
  int32_t* free_row;    // [row]
  int32_t* node_of_id;  // in the end: row of an id
  int32_t* law_token;   // [row, list_width]
  float* law_prob;

  TREESPEC_DEVICE static Slots at(void* workspace, const SlotLayout& layout, int b) {
    char* memory = static_cast<char*>(workspace) + layout.bytes_each * b;
    return {reinterpret_cast<SlotLayout::Header*>(memory),
            reinterpret_cast<SlotNode*>(memory + layout.node),
            reinterpret_cast<double*>(memory + layout.value),
            reinterpret_cast<double*>(memory + layout.child_value),
            reinterpret_cast<int32_t*>(memory + layout.entry),
            reinterpret_cast<int32_t*>(memory + layout.frontier),
            reinterpret_cast<int32_t*>(memory + layout.free_row),
            reinterpret_cast<int32_t*>(memory + layout.node_of_id),
            reinterpret_cast<int32_t*>(memory + layout.law_token),
            reinterpret_cast<float*>(memory + layout.law_prob)};
  }
};

/// Value down, in a word: smaller is better. Values are positive.
TREESPEC_DEVICE uint64_t value_word(double value) {
  return ~static_cast<uint64_t>(shared::double_to_bits(value));
}

/// What a slot has to reach. Among equal values the shallower comes first.
struct Bar {
  uint64_t word = UINT64_MAX;
  int32_t depth = INT32_MAX;
  TREESPEC_DEVICE bool reached_by(uint64_t w, int32_t d) const {
    return w < word || (w == word && d <= depth);
  }
};

/// The `wanted`-th best of the slots that `for_all(look_at)` shows as look_at(word, depth); reached
/// by every slot when there are fewer.
template <int kThreads, class ForAll>
TREESPEC_DEVICE Bar select_bar(const Buckets& buckets, int32_t wanted, ForAll for_all,
                               int32_t* scratch) {
  int32_t here = 0;
  for_all([&](uint64_t, int32_t) { ++here; });
  const int32_t total = simt::block_reduce<kThreads>(here, 0, simt::Sum{}, scratch);
  if (wanted < 1 || total < wanted) return {};
  const auto next_byte = [&](auto byte_of) {
    buckets.clear<kThreads>();
    for_all([&](uint64_t word, int32_t depth) {
      const int32_t byte = byte_of(word, depth);
      if (byte >= 0) buckets.add(byte);
    });
    simt::sync_block();
    const Buckets::Found found = buckets.holding(wanted);
    wanted -= found.before;
    return static_cast<uint64_t>(found.bucket);
  };
  Bar bar{0, 0};
  for (int shift = 56; shift >= 0; shift -= 8) {
    const uint64_t byte = next_byte([&](uint64_t word, int32_t) {
      const bool match = shift == 56 || word >> (shift + 8) == bar.word;
      return match ? static_cast<int32_t>(word >> shift & 0xFFu) : -1;
    });
    bar.word = bar.word << 8 | byte;
  }
  for (int shift = 8; shift >= 0; shift -= 8) {  // depths are at most the node budget
    const uint64_t byte = next_byte([&](uint64_t word, int32_t depth) {
      const bool match = word == bar.word && (shift == 8 || depth >> 8 == bar.depth);
      return match ? depth >> shift & 0xFF : -1;
    });
    bar.depth = bar.depth << 8 | static_cast<int32_t>(byte);
  }
  return bar;
}

TREESPEC_DEVICE double threshold_of(const SlotOptions& options, int32_t budget) {
  return options.threshold >= 0.0 ? options.threshold : 1.0 / (budget > 1 ? budget : 1);
}
/// Whether a node may have a child at all.
TREESPEC_DEVICE bool may_grow(const SlotNode& node, const SlotOptions& options, int32_t budget) {
  return budget > 0 && node.depth < options.max_depth && node.first > 0.0 &&
         node.first >= threshold_of(options, budget);
}

struct BeginSlots {
  static constexpr int kThreads = 64;
  SlotOptions options;
  BuildRequest request;
  Trees trees;
  SlotLayout layout;
  void* workspace;
  Frontier frontier;
  uint32_t* status;

  TREESPEC_DEVICE void operator()() const {
    const int b = simt::block();
    const Slots s = Slots::at(workspace, layout, b);
    const int32_t budget = budget_of(request, trees, b, status);
    SlotNode root{};
    root.value = root.first = 1.0;
    root.parent = -1;
    root.num_known = kNotEvaluated;
    const bool growing = may_grow(root, options, budget);
    if (simt::thread() == 0) {
      s.node[0] = root;
      s.frontier[0] = 0;
      *s.header = {1, growing ? 1 : 0, growing ? 1 : 0, budget};
    }
    FrontierView::of_sequence(frontier, b).start<kThreads>(growing, root_token_of(request, b));
  }
};

/// Takes the draws of a frontier node in advance: noise depends on the path alone, so that a draw
/// is the same whenever it is looked at.
struct TakeDraws {
  static constexpr int kThreads = 128;
  using Law = RowLaw<kThreads>;
  SlotOptions options;
  const RoundKey* key;
  ListSource lists;
  SlotLayout layout;
  void* workspace;
  uint32_t* status;

  TREESPEC_DEVICE void operator()() const {
    const int b = simt::block_y();
    const Slots slots = Slots::at(workspace, layout, b);
    if (simt::block() >= slots.header->frontier_size) return;
    const int32_t place = slots.frontier[simt::block()], budget = slots.header->budget;
    SlotNode& node = slots.node[place];
    auto& s = *reinterpret_cast<Law::Shared*>(simt::shared_memory());
    const Lists source = Lists::of_sequence(lists, b);
    bool bad_row = false;
    const int32_t list = source.list_of(node.depth, node.state, simt::block(), bad_row);
    if (bad_row && simt::thread() == 0) simt::atomic_or(status + b, kOutOfBounds);
    const int32_t size = list < 0 ? 0 : Law::read(source, list, status + b, s);
    const int64_t law = int64_t{node.row} * layout.list_width;
    const int32_t law_size = Law::record(size, slots.law_token + law, slots.law_prob + law, s);
    Law::run_race(0, size, key[b], node.slot, s);
    const int32_t known = value_draws(slots, place, list, size, budget, s);
    if (simt::thread() != 0) return;
    node.law_size = law_size;
    node.num_known = known;
  }

  /// Values of slots: what the draws before have left of the node's mass, or what a calibration
  /// makes of the draws; returns how many count.
  TREESPEC_DEVICE int32_t value_draws(const Slots& slots, int32_t place, int32_t list, int32_t size,
                                      int32_t budget, Law::Shared& s) const {
    uint64_t total = 0;
    for (int32_t i = simt::thread(); i < size; i += kThreads) {
      total += static_cast<uint64_t>(shared::to_fixed(s.prob[i]));
    }
    total = simt::block_reduce<kThreads>(total, uint64_t{0}, simt::Sum{}, s.scratch);
    const double first = slots.node[place].first, least = threshold_of(options, budget);
    const auto part = [&](uint64_t mass) {
      return first * (static_cast<double>(mass) / static_cast<double>(total));
    };
    const bool is_calibrated = options.calibration.num_points > 0;
    const int32_t most = smaller(size, smaller(layout.num_draws, budget));
    const int64_t row = int64_t{slots.node[place].row} * layout.num_draws;
    uint64_t drawn = 0, known = 0;
    for (int32_t begin = 0; begin < most; begin += kThreads) {
      const int32_t j = begin + simt::thread();
      const bool there = j < most && s.arrival[j].time != Law::kNever;
      const auto at = there ? static_cast<int32_t>(s.arrival[j].place) : 0;
      const uint64_t share = there ? static_cast<uint64_t>(shared::to_fixed(s.prob[at])) : 0;
      const auto sum = simt::block_prefix_sum<kThreads>(share, s.scratch);
      const uint64_t rest = total - (drawn + sum.before);
      const double value = is_calibrated ? first : part(rest);  // the chain will lower it
      if (there && value > 0.0 && value >= least) {
        slots.value[row + j] = value;
        slots.child_value[row + j] = is_calibrated ? accepted(share, rest) : part(share);
        slots.entry[row + j] = list + Law::rank_at(s, at);
        ++known;
      }
      drawn += sum.total;
    }
    known = simt::block_reduce<kThreads>(known, uint64_t{0}, simt::Sum{}, s.scratch);
    const auto count = static_cast<int32_t>(known);
    return is_calibrated ? chain_values(slots, row, first, least, count) : count;
  }

  /// Acceptance of a draw by its probability among what was left.
  TREESPEC_DEVICE double accepted(uint64_t share, uint64_t rest) const {
    const double r = static_cast<double>(share) / static_cast<double>(rest);
    return shared::calibrated(points_of(options.calibration), options.calibration.num_points, r);
  }
  /// From acceptances, which stand where the values of children will be, to values: a draw that is
  /// looked at with chance v leaves v * a to its child and v * (1 - a) to the next draw. A product
  /// of rounded factors has an order, so that one thread goes along it.
  TREESPEC_DEVICE static int32_t chain_values(const Slots& slots, int64_t row, double first,
                                              double least, int32_t count) {
    if (simt::thread() != 0) return 0;
    double value = first;
    int32_t j = 0;
    for (; j < count && value > 0.0 && value >= least; ++j) {
      const double a = slots.child_value[row + j];
      slots.value[row + j] = value;
      slots.child_value[row + j] = value * a;
      value *= 1.0 - a;
    }
    return j;
  }
  static TREESPEC_DEVICE int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
};

/// Draws every slot that may be among the best; asks for the rows of nodes that may hold more.
struct GrowSlots {
  static constexpr int kThreads = 256;
  SlotOptions options;
  ListSource lists;
  SlotLayout layout;
  void* workspace;
  Frontier frontier;
  uint32_t* status;

  struct Shared {
    int32_t bucket_size[kBuckets];
    Buckets::Found found;
    int32_t scratch[kThreads / simt::kWarpSize];
  };

  TREESPEC_DEVICE void operator()() const {
    const int b = simt::block();
    const Slots slots = Slots::at(workspace, layout, b);
    if (slots.header->frontier_size == 0) return;
    Shared& s = *reinterpret_cast<Shared*>(simt::shared_memory());
    const int32_t size = slots.header->size, budget = slots.header->budget;
    int32_t grown = draw(slots, bar_of(slots, size, budget, true, s), size, b, s);
    const Bar bar = bar_of(slots, grown, budget, true, s);
    // The bar of slots that are known to exist only rises.
    if (grown > layout.num_nodes / 2) {
      grown = drop_worse(slots, bar_of(slots, grown, budget, false, s), grown, s);
    }
    find_free_rows(slots, grown, s);
    ask(slots, bar, grown, b, s);
  }

  /// Forgets nodes whose slot does not reach the bar; no slot below them does. Returns how many are
  /// left, in their order.
  TREESPEC_DEVICE static int32_t drop_worse(const Slots& slots, const Bar& bar, int32_t size,
                                            Shared& s) {
    int32_t* moves_to = slots.frontier;  // which has been served
    int32_t count = 0;
    for (int32_t begin = 0; begin < size; begin += kThreads) {
      const int32_t i = begin + simt::thread();
      const bool stays = i == 0 || (i < size && bar.reached_by(value_word(slots.node[i].value),
                                                               slots.node[i].depth));
      const auto sum = simt::block_prefix_sum<kThreads>(int32_t{stays}, s.scratch);
      if (i < size) moves_to[i] = stays ? count + sum.before : -1;
      count += sum.total;
    }
    simt::sync_block();
    for (int32_t begin = 0; begin < size; begin += kThreads) {
      const int32_t i = begin + simt::thread();
      const bool stays = i < size && moves_to[i] >= 0;
      SlotNode node{};
      if (stays) node = slots.node[i];
      simt::sync_block();  // what is written over has been read
      if (i > 0 && stays) node.parent = moves_to[node.parent];
      if (stays) slots.node[moves_to[i]] = node;
      simt::sync_block();
    }
    if (simt::thread() == 0) slots.header->size = count;
    simt::sync_block();
    return count;
  }

  /// Lists the rows that no node has.
  TREESPEC_DEVICE void find_free_rows(const Slots& slots, int32_t size, Shared& s) const {
    for (int32_t r = simt::thread(); r < layout.num_nodes; r += kThreads) slots.frontier[r] = 0;
    simt::sync_block();
    for (int32_t i = simt::thread(); i < size; i += kThreads) {
      if (slots.node[i].num_known != kNotEvaluated) slots.frontier[slots.node[i].row] = 1;
    }
    simt::sync_block();
    int32_t count = 0;
    for (int32_t begin = 0; begin < layout.num_nodes; begin += kThreads) {
      const int32_t r = begin + simt::thread();
      const bool is_free = r < layout.num_nodes && slots.frontier[r] == 0;
      const auto sum = simt::block_prefix_sum<kThreads>(int32_t{is_free}, s.scratch);
      if (is_free) slots.free_row[count + sum.before] = r;
      count += sum.total;
    }
    simt::sync_block();
  }

  /// Slots of nodes whose row is not known may turn out not to exist; `all` counts them, too.
  TREESPEC_DEVICE Bar bar_of(const Slots& slots, int32_t size, int32_t budget, bool all,
                             Shared& s) const {
    return select_bar<kThreads>(
        {s.bucket_size, &s.found}, budget,
        [&](auto look_at) {
          for (int32_t i = simt::thread(); i < size; i += kThreads) {
            const SlotNode& node = slots.node[i];
            if (i > 0) look_at(value_word(node.value), node.depth);
            if (node.num_known == kNotEvaluated) {
              if (!all || !may_grow(node, options, budget)) continue;
              look_at(value_word(node.first), node.depth + 1);
            } else if (node.num_drawn < node.num_known) {
              look_at(value_word(open_value(slots, i, 0)), node.depth + 1);
            }
          }
        },
        s.scratch);
  }
  /// Of the slot that comes `after` the open one.
  TREESPEC_DEVICE double open_value(const Slots& slots, int32_t i, int32_t after) const {
    const SlotNode& node = slots.node[i];
    return slots.value[int64_t{node.row} * layout.num_draws + node.num_drawn + after];
  }

  /// Makes the children of slots that reach the bar; returns the number of nodes.
  TREESPEC_DEVICE int32_t draw(const Slots& slots, const Bar& bar, int32_t size, int b,
                               Shared& s) const {
    const Lists source = Lists::of_sequence(lists, b);
    int32_t count = size;
    for (int32_t begin = 0; begin < size; begin += kThreads) {
      const int32_t i = begin + simt::thread();
      int32_t made = 0;
      if (i < size) {
        const SlotNode& node = slots.node[i];
        while (node.num_drawn + made < node.num_known &&
               bar.reached_by(value_word(open_value(slots, i, made)), node.depth + 1)) {
          ++made;
        }
      }
      const auto sum = simt::block_prefix_sum<kThreads>(made, s.scratch);
      for (int32_t j = 0; j < made && count + sum.before + j < layout.num_nodes; ++j) {
        add_child(slots, source, i, slots.node[i].num_drawn + j, count + sum.before + j);
      }
      simt::sync_block();
      if (made > 0) slots.node[i].num_drawn += made;
      count += sum.total;
    }
    if (count > layout.num_nodes) {
      if (simt::thread() == 0) simt::atomic_or(status + b, kOutOfBounds);
      count = layout.num_nodes;
    }
    if (simt::thread() == 0) slots.header->size = count;
    simt::sync_block();
    return count;
  }

  TREESPEC_DEVICE void add_child(const Slots& slots, const Lists& source, int32_t parent,
                                 int32_t draw, int32_t at) const {
    const SlotNode& p = slots.node[parent];
    const int64_t known = int64_t{p.row} * layout.num_draws + draw;
    const int32_t entry = slots.entry[known];
    SlotNode child{};
    child.value = slots.value[known];
    child.first = slots.child_value[known];
    child.token = source.token[entry];
    child.parent = parent;
    child.depth = p.depth + 1;
    child.state = source.state_of(entry);
    child.score = shared::child_score(p.score, source.logprob[entry]);
    child.slot = child_slot(p.slot, child.token);
    child.index = -1;
    child.draw = draw;
    child.num_known = kNotEvaluated;
    child.row = -1;
    slots.node[at] = child;
  }

  TREESPEC_DEVICE void ask(const Slots& slots, const Bar& bar, int32_t size, int b,
                           Shared& s) const {
    const FrontierView out = FrontierView::of_sequence(frontier, b);
    const int32_t handed = slots.header->num_handed, budget = slots.header->budget;
    int32_t count = 0;
    for (int32_t begin = 0; begin < size; begin += kThreads) {
      const int32_t i = begin + simt::thread();
      bool wanted = false;
      if (i < size) {
        const SlotNode& node = slots.node[i];
        wanted = node.num_known == kNotEvaluated && may_grow(node, options, budget) &&
                 bar.reached_by(value_word(node.first), node.depth + 1);
      }
      const auto sum = simt::block_prefix_sum<kThreads>(int32_t{wanted}, s.scratch);
      const int32_t at = count + sum.before;
      if (wanted && at < out.max_nodes) {
        SlotNode& node = slots.node[i];
        node.index = handed + at;
        node.row = slots.free_row[at];
        slots.frontier[at] = i;
        out.put(at,
                {node.index, slots.node[node.parent].index, node.token, node.depth, node.state});
      }
      count += sum.total;
    }
    if (count > out.max_nodes) {
      if (simt::thread() == 0) simt::atomic_or(status + b, kOutOfBounds);
      count = out.max_nodes;
    }
    out.end_at<kThreads>(count);
    if (simt::thread() != 0) return;
    slots.header->num_handed = handed + count;
    slots.header->frontier_size = count;
  }
};

/// Numbers the best slots in the order in which they would be popped.
struct FinishSlots {
  static constexpr int kThreads = 512;
  static constexpr int32_t kMostItems = 4096;
  BuildRequest request;
  Trees trees;
  SlotLayout layout;
  void* workspace;
  LawOutput law;
  uint32_t* status;

  struct Item {
    uint64_t word;
    int32_t depth;
    int32_t node;
  };
  struct Shared {
    Item item[kMostItems];
    int32_t bucket_size[kBuckets];
    Buckets::Found found;
    int32_t scratch[kThreads / simt::kWarpSize];
    int32_t count;
  };

  TREESPEC_DEVICE void operator()() const {
    const int b = simt::block();
    const Slots slots = Slots::at(workspace, layout, b);
    Shared& s = *reinterpret_cast<Shared*>(simt::shared_memory());
    const int32_t num_drafted = sort_best(slots, b, s);
    const TreeView tree = TreeView::of_sequence(trees, b);
    for (int32_t i = simt::thread(); i <= num_drafted; i += kThreads) {
      const int32_t node = i > 0 ? s.item[i - 1].node : 0;
      slots.node[node].id = i;
      slots.node_of_id[i] = node;
    }
    simt::sync_block();
    const auto parent_of = [&](int32_t i) {
      return slots.node[slots.node[slots.node_of_id[i]].parent].id;
    };
    write_nodes<kThreads>(tree, num_drafted + 1, [&](int32_t i) {
      const SlotNode& node = slots.node[slots.node_of_id[i]];
      if (i == 0) return TreeNode{root_token_of(request, b), -1, 0, 0.0f};
      return TreeNode{node.token, parent_of(i), node.depth, node.score};
    });
    // Draws of a node are popped in their order, so that ids have it, too.
    write_children_as_draws<kThreads>(tree, num_drafted + 1, parent_of,
                                      reinterpret_cast<uint32_t*>(s.item));
    simt::sync_block();
    const int64_t row = int64_t{b} * trees.max_nodes;
    for (int32_t i = simt::thread(); i < trees.max_nodes; i += kThreads) {
      const bool drew = i <= num_drafted && tree.draw_offset[i] < tree.draw_offset[i + 1];
      law.row_of_node[row + i] = drew ? static_cast<int32_t>(row + i) : -1;
      law.row_offset[row + i + 1] = drew ? slots.node[slots.node_of_id[i]].law_size : 0;
    }
    simt::sync_block();
    for (int32_t i = simt::thread(); i <= num_drafted; i += kThreads) {
      slots.node_of_id[i] = slots.node[slots.node_of_id[i]].row;
    }
  }

  /// Sorts the drawn slots that reach the bar; returns how many are in the tree.
  TREESPEC_DEVICE int32_t sort_best(const Slots& slots, int b, Shared& s) const {
    const int32_t size = slots.header->size, budget = slots.header->budget;
    const Bar bar = select_bar<kThreads>(
        {s.bucket_size, &s.found}, budget,
        [&](auto look_at) {
          for (int32_t i = 1 + simt::thread(); i < size; i += kThreads) {
            look_at(value_word(slots.node[i].value), slots.node[i].depth);
          }
        },
        s.scratch);
    if (simt::thread() == 0) s.count = 0;
    simt::sync_block();
    for (int32_t i = 1 + simt::thread(); i < size; i += kThreads) {
      const uint64_t word = value_word(slots.node[i].value);
      if (!bar.reached_by(word, slots.node[i].depth)) continue;
      const int32_t at = simt::atomic_add(&s.count, 1);
      if (at < kMostItems) s.item[at] = {word, slots.node[i].depth, i};
    }
    simt::sync_block();
    int32_t count = s.count;
    if (count > kMostItems) {
      if (simt::thread() == 0) simt::atomic_or(status + b, kOutOfBounds);
      count = kMostItems;
    }
    const int32_t padded = simt::padded_to_sort(count);
    for (int32_t i = count + simt::thread(); i < padded; i += kThreads) {
      s.item[i] = {UINT64_MAX, INT32_MAX, -1};
    }
    simt::sort_block<kThreads>(s.item, padded, [&slots](const Item& x, const Item& y) {
      if (x.word != y.word) return x.word < y.word;
      if (x.depth != y.depth) return x.depth < y.depth;
      return before(slots, x.node, y.node);
    });
    return count < budget ? count : budget;
  }

  /// The order of slots of one value and depth: that of their nodes, then of the draws.
  TREESPEC_DEVICE static bool before(const Slots& slots, int32_t i, int32_t j) {
    while (i != j && i >= 0 && j >= 0) {
      const SlotNode &x = slots.node[i], &y = slots.node[j];
      if (x.parent == y.parent) return x.draw < y.draw;
      const uint64_t u = value_word(slots.node[x.parent].value);
      const uint64_t v = value_word(slots.node[y.parent].value);
      if (u != v) return u < v;
      i = x.parent;
      j = y.parent;
    }
    return false;
  }
};

void check_slots(const char* who, const SlotOptions& options, const Trees& trees,
                 const Frontier& frontier) {
  check_trees(who, trees);
  TREESPEC_CHECK(options.max_depth >= 0, who, ": max_depth must be >= 0, got ", options.max_depth);
  check_calibration(who, options.calibration);
  TREESPEC_CHECK(frontier.max_nodes >= std::max(1, trees.max_nodes - 1), who,
                 ": frontier.max_nodes must be at least trees.max_nodes - 1, got ",
                 frontier.max_nodes);
}

}  // namespace

size_t slots_workspace_bytes(int32_t batch, int32_t max_nodes, int32_t list_width) {
  return static_cast<size_t>(batch) *
         static_cast<size_t>(SlotLayout(SlotSize{max_nodes, list_width}).bytes_each);
}

void begin_slots(Stream stream, const SlotOptions& options, int32_t list_width,
                 const BuildRequest& request, const Trees& trees, void* workspace,
                 const Frontier& frontier, uint32_t* status) {
  check_slots("begin_slots", options, trees, frontier);
  const SlotLayout layout(SlotSize{trees.max_nodes, list_width});
  simt::launch(stream, {trees.batch},
               BeginSlots{options, request, trees, layout, workspace, frontier, status});
}

void grow_slots(Stream stream, const SlotOptions& options, const RoundKey* key,
                const ListSource& lists, const Trees& trees, void* workspace,
                const Frontier& frontier, uint32_t* status) {
  check_slots("grow_slots", options, trees, frontier);
  check_lists("grow_slots", lists);
  TREESPEC_CHECK(key != nullptr, "grow_slots: key must be given to draw");
  const SlotLayout layout(SlotSize{trees.max_nodes, lists.width});
  const auto most = std::min(frontier.max_nodes, layout.num_nodes);
  simt::launch(stream, {most, trees.batch, sizeof(TakeDraws::Law::Shared)},
               TakeDraws{options, key, lists, layout, workspace, status});
  simt::launch(stream, {trees.batch, 1, sizeof(GrowSlots::Shared)},
               GrowSlots{options, lists, layout, workspace, frontier, status});
}

void finish_slots(Stream stream, int32_t list_width, const BuildRequest& request, void* workspace,
                  const Trees& trees, const LawOutput& law, uint32_t* status) {
  check_trees("finish_slots", trees);
  const SlotLayout layout(SlotSize{trees.max_nodes, list_width});
  simt::launch(stream, {trees.batch, 1, sizeof(FinishSlots::Shared)},
               FinishSlots{request, trees, layout, workspace, law, status});
  pack_laws(stream,
            {workspace, layout.bytes_each, layout.node_of_id, layout.law_token, layout.law_prob,
             list_width},
            trees, law);
}

}  // namespace treespec::device
