// SPDX-License-Identifier: Apache-2.0
// The layered core: one drafter call per layer, the node-budget best of everything seen.
#pragma once

#include <memory>

#include "builders/scores.h"
#include "treespec/tree_builder.h"

namespace treespec {

/// Which nodes the next drafter call expands.
enum class LayerGrowth : uint8_t {
  kLayer,     ///< the best of the layer drafted last
  kConstant,  ///< the best nodes not expanded yet, of any depth: calls of one size
};

struct LayeredOptions {
  int32_t max_depth = INT32_MAX;
  int32_t max_calls = INT32_MAX;  ///< of the drafter
  int32_t width = INT32_MAX;      ///< most nodes expanded per call, and children taken of each
  double threshold = 0.0;         ///< stop when a layer adds no more expected acceptance than this
  double floor = 0.0;             ///< nodes of a smaller path probability are left out
  /// > 0: below the first layer, children of at least this share of their layer's best are taken
  /// and all expanded, until the budget is filled.
  double width_ratio = 0.0;
  LayerGrowth growth = LayerGrowth::kLayer;
  ScoreOptions scores;
};

/// With unlimited width and threshold 0: the node-budget best prefixes under the total order.
std::unique_ptr<TreeGrowth> layered_growth(int32_t node_budget, const LayeredOptions& options);

}  // namespace treespec
