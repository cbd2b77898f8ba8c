// SPDX-License-Identifier: Apache-2.0
// The rollout core: cursors that walk down by independent draws; where two draw the same token they
// share the node, and the draw list keeps both.
#pragma once

#include <memory>

#include "treespec/tree_builder.h"

namespace treespec {

/// A trunk of `trunk` draws, then `num_paths` cursors of `branch` draws each from its end.
std::unique_ptr<TreeGrowth> cursor_growth(int32_t num_paths, int32_t trunk, int32_t branch,
                                          const RoundKey& key);

}  // namespace treespec
