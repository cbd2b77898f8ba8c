// SPDX-License-Identifier: Apache-2.0
#include "builders/optimal_shape.h"

#include <algorithm>

namespace treespec {
namespace {

/// Enough for every depth at the end of a text; callers whose budget never repeats start anew.
constexpr size_t kMostShapes = 256;

GrowthMap cut(const GrowthMap& map, int32_t node_budget, int32_t max_depth) {
  const std::vector<int32_t> depth = map.depths();
  std::vector<int32_t> id_of(depth.size(), 0);
  GrowthMap kept;
  for (int32_t i = 1; i <= map.num_nodes() && kept.num_nodes() < node_budget; ++i) {
    if (depth[i] > max_depth) continue;
    kept.parent.push_back(id_of[map.parent[i - 1]]);
    id_of[i] = kept.num_nodes();
  }
  return kept;
}

}  // namespace

OptimalShape::OptimalShape(std::string_view builder, OptionReader& reader,
                           std::string_view table_option, const AcceptanceTable& fallback)
    : builder_(builder),
      table_(reader.table(table_option, 0.0, 1.0)),
      given_{reader.integers("growth_map", {}, 0)},
      max_depth_(reader.integer("max_depth", INT32_MAX, 0)) {
  TREESPEC_CHECK(table_.empty() || given_.parent.empty(), builder_, ": growth_map and ",
                 table_option, " must not both be given, a map needs no table");
  check_growth_map(builder_, given_);
  if (table_.empty()) table_ = fallback;
  check_acceptance(builder_, table_option, table_);
}

bool OptimalShape::is_chain() const {
  if (given_.parent.empty()) {
    return std::all_of(table_.begin(), table_.end(),
                       [](const auto& row) { return row.size() == 1; });
  }
  for (int32_t i = 0; i < given_.num_nodes(); ++i) {
    if (given_.parent[i] != i) return false;
  }
  return true;
}

std::shared_ptr<const TreeShape> OptimalShape::shape(int32_t node_budget, int32_t max_depth) const {
  const int32_t depth = std::min({max_depth_, max_depth, node_budget});
  const std::lock_guard<std::mutex> lock(mutex_);
  if (shapes_.size() >= kMostShapes) shapes_.clear();
  auto& shape = shapes_[{node_budget, depth}];
  if (shape == nullptr) shape = map_shape(map(node_budget, depth));
  return shape;
}

GrowthMap OptimalShape::map(int32_t node_budget, int32_t max_depth) const {
  if (!given_.parent.empty()) return cut(given_, node_budget, max_depth);
  TREESPEC_CHECK(node_budget <= kMostMapNodes, builder_, ": node_budget must be at most ",
                 kMostMapNodes, ", the map is laid out in memory; got ", node_budget);
  return optimal_growth_map(table_, node_budget, max_depth);
}

}  // namespace treespec
