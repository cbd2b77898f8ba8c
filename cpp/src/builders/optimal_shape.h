// SPDX-License-Identifier: Apache-2.0
// The options of builders that fill a growth map: one that is given, or the best for a table.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>

#include "builders/fixed_shape.h"
#include "builders/options.h"

namespace treespec {

/// Shapes by node budget and depth, computed once; may be shared between threads.
class OptimalShape {
 public:
  /// Reads `growth_map`, the table option of this name, and `max_depth`.
  OptimalShape(std::string_view builder, OptionReader& reader, std::string_view table_option,
               const AcceptanceTable& fallback);

  bool is_chain() const;
  /// Throws InvalidArgument when a map for `node_budget` nodes cannot be laid out.
  std::shared_ptr<const TreeShape> shape(int32_t node_budget, int32_t max_depth) const;

 private:
  GrowthMap map(int32_t node_budget, int32_t max_depth) const;

  std::string_view builder_;
  AcceptanceTable table_;
  GrowthMap given_;  // empty: none
  int32_t max_depth_;
  mutable std::mutex mutex_;
  mutable std::map<std::pair<int32_t, int32_t>, std::shared_ptr<const TreeShape>> shapes_;
};

}  // namespace treespec
