// SPDX-License-Identifier: Apache-2.0
#include "treespec/growth_map.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <queue>

#include "treespec/error.h"

namespace treespec {
namespace {

constexpr int32_t kMostProgramNodes = 1 << 13;
constexpr double kRowSumSlack = 1e-6;  // rows of rounded shares may sum to a little over 1
constexpr double kInfeasible = -std::numeric_limits<double>::infinity();

const std::vector<double>& row_at(const AcceptanceTable& table, int32_t depth) {
  return table[std::min(static_cast<size_t>(depth), table.size() - 1)];
}

void check_size(std::string_view who, int32_t num_nodes) {
  TREESPEC_CHECK(num_nodes >= 0 && num_nodes <= kMostMapNodes, who, ": num_nodes must be in [0, ",
                 kMostMapNodes, "], got ", num_nodes);
}

/// A place in the map that may be taken next.
struct Slot {
  double value;
  int32_t depth, parent, rank;

  /// Later in the total order: value down, depth up, parent up, rank up.
  bool operator<(const Slot& other) const {
    if (value != other.value) return value < other.value;
    if (depth != other.depth) return depth > other.depth;
    if (parent != other.parent) return parent > other.parent;
    return rank > other.rank;
  }
};

/// Values fall along children and along siblings, so the first child and the next sibling of what
/// was taken are the only new slots worth a look.
class BestFirst {
 public:
  BestFirst(const AcceptanceTable& table, int32_t max_depth)
      : table_(table), max_depth_(max_depth) {
    open({0.0, 1, 0, 0});
  }

  GrowthMap take(int32_t num_nodes) {
    GrowthMap map;
    while (map.num_nodes() < num_nodes && !slots_.empty()) {
      const Slot slot = slots_.top();
      slots_.pop();
      map.parent.push_back(slot.parent);
      value_.push_back(slot.value);
      open({0.0, slot.depth, slot.parent, slot.rank + 1});
      open({0.0, slot.depth + 1, map.num_nodes(), 0});
    }
    return map;
  }

 private:
  void open(Slot slot) {
    const std::vector<double>& row = row_at(table_, slot.depth - 1);
    if (slot.depth > max_depth_ || static_cast<size_t>(slot.rank) >= row.size()) return;
    slot.value = value_[slot.parent] * row[slot.rank];
    if (slot.value > 0.0) slots_.push(slot);
  }

  const AcceptanceTable& table_;
  int32_t max_depth_;
  std::vector<double> value_{1.0};  // per node: probability that it is accepted
  std::priority_queue<Slot> slots_;
};

/// The best subtree of every size below an accepted node of one depth.
struct SubtreeTable {
  std::vector<double> best;           // [size], the node itself counted; kInfeasible: there is none
  std::vector<int32_t> num_children;  // [size]
  std::vector<std::vector<int32_t>> last_child;  // [children][size]: size of the last child's own
};

SubtreeTable leaves_only(int32_t largest) {
  SubtreeTable leaf;
  leaf.best.assign(static_cast<size_t>(largest) + 1, kInfeasible);
  leaf.best[1] = 1.0;
  leaf.num_children.assign(leaf.best.size(), 0);
  leaf.last_child = {{}};
  return leaf;
}

/// One step up: `row` holds the acceptance of this depth's children, whose subtrees are `below`.
SubtreeTable subtrees(const std::vector<double>& row, const SubtreeTable& below) {
  const auto largest = static_cast<int32_t>(below.best.size()) - 1;
  SubtreeTable table = leaves_only(largest);
  std::vector<double> before = table.best;  // best with one child less
  for (int32_t b = 1; b <= static_cast<int32_t>(row.size()) && b < largest; ++b) {
    std::vector<double> now(before.size(), kInfeasible);
    std::vector<int32_t> last(before.size(), 0);
    for (int32_t rest = b; rest < largest; ++rest) {
      if (before[rest] == kInfeasible) continue;
      for (int32_t own = 1; rest + own <= largest && below.best[own] != kInfeasible; ++own) {
        const double value = before[rest] + row[b - 1] * below.best[own];
        if (value <= now[rest + own]) continue;
        now[rest + own] = value;
        last[rest + own] = own;
      }
    }
    for (int32_t size = b + 1; size <= largest; ++size) {
      if (now[size] <= table.best[size]) continue;
      table.best[size] = now[size];
      table.num_children[size] = b;
    }
    table.last_child.push_back(std::move(last));
    before = std::move(now);
  }
  return table;
}

/// One table per depth; where rows repeat and a step up changes nothing, depths share a table.
class SubtreeTables {
 public:
  SubtreeTables(const AcceptanceTable& acceptance, int32_t largest, int32_t max_depth)
      : at_depth_(static_cast<size_t>(max_depth) + 1) {
    tables_.push_back(leaves_only(largest));
    const auto last_row = static_cast<int32_t>(acceptance.size()) - 1;
    bool settled = false;
    for (int32_t depth = max_depth - 1; depth >= 0; --depth) {
      settled = settled && depth >= last_row;
      if (!settled) {
        tables_.push_back(subtrees(row_at(acceptance, depth), tables_.back()));
        settled = depth >= last_row && tables_.back().best == tables_[tables_.size() - 2].best;
      }
      at_depth_[depth] = tables_.size() - 1;
    }
  }
  const SubtreeTable& at(int32_t depth) const { return tables_[at_depth_[depth]]; }

 private:
  std::vector<SubtreeTable> tables_;
  std::vector<size_t> at_depth_;
};

/// Subtree sizes of the children, first child first.
std::vector<int32_t> child_sizes(const SubtreeTable& table, int32_t size) {
  std::vector<int32_t> sizes(static_cast<size_t>(table.num_children[size]));
  for (size_t b = sizes.size(); b > 0; --b) {
    sizes[b - 1] = table.last_child[b][size];
    size -= sizes[b - 1];
  }
  return sizes;
}

}  // namespace

std::vector<int32_t> GrowthMap::depths() const {
  std::vector<int32_t> depth{0};
  for (const int32_t p : parent) depth.push_back(depth[p] + 1);
  return depth;
}

void check_growth_map(std::string_view who, const GrowthMap& map) {
  for (int32_t i = 0; i < map.num_nodes(); ++i) {
    TREESPEC_CHECK(map.parent[i] >= 0 && map.parent[i] <= i, who,
                   ": growth_map must hold the parents of nodes 1, 2, ..., each an earlier node; "
                   "entry ",
                   i, " must be in [0, ", i, "], got ", map.parent[i]);
  }
}

void check_acceptance(std::string_view who, std::string_view name, const AcceptanceTable& table) {
  TREESPEC_CHECK(!table.empty(), who, ": ", name, " must have at least one row, got none");
  for (size_t d = 0; d < table.size(); ++d) {
    TREESPEC_CHECK(!table[d].empty(), who, ": ", name, " must have no empty row, row ", d, " is");
    double sum = 0.0;
    for (const double p : table[d]) {
      TREESPEC_CHECK(p >= 0.0 && p <= 1.0, who, ": ", name, " must be in [0, 1], got ", p,
                     " in row ", d);
      sum += p;
    }
    TREESPEC_CHECK(sum <= 1.0 + kRowSumSlack, who, ": ", name,
                   " must have rows that sum to at most 1, the ranks are disjoint events; row ", d,
                   " sums to ", sum);
  }
}

std::vector<double> non_increasing_fit(const std::vector<double>& values,
                                       const std::vector<double>& weights) {
  TREESPEC_CHECK(weights.empty() || weights.size() == values.size(),
                 "non_increasing_fit: weights must be one per value (", values.size(), "), got ",
                 weights.size());
  struct Block {
    double sum, weight;
    size_t length;
  };
  std::vector<Block> blocks;
  for (size_t i = 0; i < values.size(); ++i) {
    const double weight = weights.empty() ? 1.0 : weights[i];
    TREESPEC_CHECK(weight > 0.0, "non_increasing_fit: weights must be above 0, got ", weight);
    blocks.push_back({values[i] * weight, weight, 1});
    while (blocks.size() > 1) {
      const Block last = blocks.back();
      Block& before = blocks[blocks.size() - 2];
      if (before.sum / before.weight >= last.sum / last.weight) break;
      before = {before.sum + last.sum, before.weight + last.weight, before.length + last.length};
      blocks.pop_back();
    }
  }
  std::vector<double> fit;
  for (const Block& block : blocks) fit.insert(fit.end(), block.length, block.sum / block.weight);
  return fit;
}

GrowthMap optimal_growth_map(const AcceptanceTable& table, int32_t num_nodes, int32_t max_depth) {
  check_acceptance("optimal_growth_map", "acceptance", table);
  check_size("optimal_growth_map", num_nodes);
  AcceptanceTable smooth;
  for (const auto& row : table) smooth.push_back(non_increasing_fit(row));
  return BestFirst(smooth, max_depth).take(num_nodes);
}

GrowthMap optimal_growth_map_dp(const AcceptanceTable& table, int32_t num_nodes,
                                int32_t max_depth) {
  check_acceptance("optimal_growth_map_dp", "acceptance", table);
  // Quadratic: what takes minutes is a mistake.
  TREESPEC_CHECK(num_nodes >= 0 && num_nodes <= kMostProgramNodes,
                 "optimal_growth_map_dp: num_nodes must be in [0, ", kMostProgramNodes, "], got ",
                 num_nodes);
  const SubtreeTables tables(table, num_nodes + 1, std::clamp(max_depth, 0, num_nodes));
  const std::vector<double>& best = tables.at(0).best;
  // The smallest tree of the largest value: a node that adds nothing is not worth a row.
  const auto largest = std::max_element(best.begin(), best.end()) - best.begin();
  GrowthMap map;
  std::vector<int32_t> size{static_cast<int32_t>(largest)}, depth{0};
  for (int32_t node = 0; node < static_cast<int32_t>(size.size()); ++node) {
    for (const int32_t child : child_sizes(tables.at(depth[node]), size[node])) {
      map.parent.push_back(node);
      size.push_back(child);
      depth.push_back(depth[node] + 1);
    }
  }
  return map;
}

std::vector<double> node_acceptance(const GrowthMap& map, const AcceptanceTable& table) {
  check_growth_map("node_acceptance", map);
  check_acceptance("node_acceptance", "acceptance", table);
  const std::vector<int32_t> depth = map.depths();
  std::vector<double> value{1.0};
  std::vector<size_t> num_children(depth.size(), 0);
  for (const int32_t parent : map.parent) {
    const std::vector<double>& row = row_at(table, depth[parent]);
    const size_t rank = num_children[parent]++;
    value.push_back(rank < row.size() ? value[parent] * row[rank] : 0.0);
  }
  return value;
}

double expected_tokens(const GrowthMap& map, const AcceptanceTable& table) {
  const std::vector<double> value = node_acceptance(map, table);
  return std::accumulate(value.begin(), value.end(), 0.0);
}

// Both measured on 2026-11-22 by treespec.tuning.measure_acceptance on the bundled pair, prompts:
// the first 400 characters of 64 modules of Python's standard library.
const AcceptanceTable& demo_acceptance() {
  // width 32, texts of 160 tokens: 5113 rounds
  static const AcceptanceTable table{
      {0.5666, 0.1084, 0.0534, 0.0327, 0.0256, 0.019,  0.0156, 0.0121, 0.011,  0.0098, 0.008,
       0.007,  0.0063, 0.0063, 0.0057, 0.0051, 0.0041, 0.0032, 0.0032, 0.0029, 0.0029, 0.0029,
       0.0023, 0.0023, 0.0022, 0.0022, 0.0022, 0.0022, 0.0022, 0.0022, 0.0012, 0.001}};
  return table;
}

const AcceptanceTable& demo_accuracy() {
  // width 10, texts of 128 tokens: 4289, 2213, 1323 and 866 rounds
  static const AcceptanceTable table{
      {0.644, 0.091, 0.035, 0.03, 0.019, 0.013, 0.01, 0.007, 0.007, 0.004},
      {0.695, 0.078, 0.028, 0.026, 0.015, 0.012, 0.009, 0.009, 0.007, 0.007},
      {0.772, 0.069, 0.019, 0.019, 0.016, 0.005, 0.004, 0.004, 0.004, 0.004},
      {0.751, 0.064, 0.027, 0.024, 0.014, 0.014, 0.009, 0.005, 0.005, 0.003}};
  return table;
}

}  // namespace treespec
