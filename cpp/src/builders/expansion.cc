// SPDX-License-Identifier: Apache-2.0
#include "builders/expansion.h"

#include <algorithm>
#include <utility>

namespace treespec {
namespace {

/// [levels]: most nodes of the first 0, 1, 2, ... levels, saturating far above any budget.
std::vector<int64_t> most_nodes(const std::vector<int32_t>& widths) {
  constexpr int64_t kCeiling = INT64_MAX / 2;
  std::vector<int64_t> total{0};
  int64_t level = 1;
  for (const int32_t width : widths) {
    level = width > kCeiling / level ? kCeiling : level * width;
    total.push_back(std::min(kCeiling, total.back() + level));
  }
  return total;
}

}  // namespace

Expansion::Expansion(std::string_view builder, OptionReader& reader, std::vector<int32_t> fallback)
    : builder_(builder),
      given_(reader.given("expansion")),
      widths_(reader.integers("expansion", std::move(fallback), 1)),
      num_nodes_(most_nodes(widths_)),
      max_depth_(reader.integer("max_depth", INT32_MAX, 0)) {
  TREESPEC_CHECK(!given_ || static_cast<size_t>(max_depth_) >= widths_.size(), builder_,
                 ": max_depth must be at least the length of expansion (", widths_.size(),
                 "), got ", max_depth_);
}

bool Expansion::is_chain() const {
  return std::all_of(widths_.begin(), widths_.end(), [](int32_t k) { return k == 1; });
}

std::shared_ptr<const TreeShape> Expansion::shape(int32_t node_budget, int32_t max_depth) const {
  TREESPEC_CHECK(!given_ || num_nodes_.back() <= node_budget, builder_,
                 ": node_budget must hold the ", num_nodes_.back(), " nodes of expansion, got ",
                 node_budget);
  // Whole levels only: cutting inside a sampled level would look at drawn tokens.
  size_t levels = std::min(widths_.size(), static_cast<size_t>(std::min(max_depth_, max_depth)));
  while (num_nodes_[levels] > node_budget) --levels;
  return level_shape({widths_.begin(), widths_.begin() + static_cast<long>(levels)});
}

}  // namespace treespec
