// SPDX-License-Identifier: Apache-2.0
// The options `expansion` and `max_depth` of builders whose levels have one width each.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "builders/fixed_shape.h"
#include "builders/options.h"

namespace treespec {

/// An expansion vector <k1, k2, ...>: every node at depth i - 1 gets ki children.
class Expansion {
 public:
  /// Reads the options; `fallback` is cut to whole levels that fit, a given vector must fit.
  Expansion(std::string_view builder, OptionReader& reader, std::vector<int32_t> fallback);

  bool is_chain() const;
  /// Throws InvalidArgument when a given expansion has more nodes than `node_budget`.
  std::shared_ptr<const TreeShape> shape(int32_t node_budget, int32_t max_depth) const;

 private:
  std::string_view builder_;
  bool given_;
  std::vector<int32_t> widths_;
  std::vector<int64_t> num_nodes_;  // [levels]: most nodes of the first levels
  int32_t max_depth_;
};

}  // namespace treespec
