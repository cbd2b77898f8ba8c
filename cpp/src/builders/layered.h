// SPDX-License-Identifier: Apache-2.0
// The layered core: expand whole layers, keep the node-budget best of everything seen.
#pragma once

#include <memory>

#include "treespec/tree_builder.h"

namespace treespec {

struct LayeredOptions {
  int32_t max_depth = INT32_MAX;
  double threshold = 0.0;          ///< stop when a layer adds no more expected acceptance than this
  double score_temperature = 1.0;  ///< scores use softmax(logprob / score_temperature)
};

/// Exact for threshold 0: the node-budget best prefixes under the total order (trees.md 0.3).
std::unique_ptr<TreeGrowth> layered_growth(int32_t node_budget, const LayeredOptions& options);

}  // namespace treespec
