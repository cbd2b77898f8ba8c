// SPDX-License-Identifier: Apache-2.0
// The fixed-shape core: a shape that is known before any token, filled level by level.
#pragma once

#include <memory>
#include <vector>

#include "treespec/growth_map.h"
#include "treespec/tree_builder.h"

namespace treespec {

/// Which children the node at a place wants. The root's place is 0; several nodes may share one.
class TreeShape {
 public:
  virtual ~TreeShape() = default;
  /// Children (deterministic) or draws (sampled).
  virtual int32_t num_children(int32_t place) const = 0;
  /// Place of the child of this rank. The tree orders its nodes by place, then by creation.
  virtual int32_t child(int32_t place, int32_t rank) const = 0;
};

/// `widths[d]` children of every node at depth d; a place is a depth, so nothing is laid out.
std::shared_ptr<const TreeShape> level_shape(std::vector<int32_t> widths);
/// A place is a node of the (sound) map.
std::shared_ptr<const TreeShape> map_shape(const GrowthMap& map);

/// One drafter call per level that has children. Candidates that do not exist, and equal draws,
/// leave their place and all below it empty.
std::unique_ptr<TreeGrowth> fixed_shape_growth(std::shared_ptr<const TreeShape> shape,
                                               Proposal proposal, const RoundKey& key);

}  // namespace treespec
