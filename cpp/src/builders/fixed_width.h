// SPDX-License-Identifier: Apache-2.0
// The fixed-shape core: every node of a level gets the same number of children or draws.
#pragma once

#include <memory>
#include <vector>

#include "treespec/tree_builder.h"

namespace treespec {

/// `widths[d]`: children (deterministic) or draws (sampled) of every node at depth d.
std::unique_ptr<TreeGrowth> fixed_width_growth(std::vector<int32_t> widths, Proposal proposal,
                                               const RoundKey& key);

/// Most nodes that the first `levels` widths can make; saturates at INT64_MAX / 2.
int64_t most_nodes(const std::vector<int32_t>& widths, size_t levels);

}  // namespace treespec
