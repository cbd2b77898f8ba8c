// SPDX-License-Identifier: Apache-2.0
// The slot core (DySpec): tokens are drawn, so that only *whether* to draw may be decided. A slot
// is "one more draw at this node"; its value estimates the probability that the verifier gets
// there.
#pragma once

#include <memory>

#include "builders/scores.h"
#include "treespec/tree_builder.h"

namespace treespec {

struct SlotOptions {
  int32_t max_depth = INT32_MAX;
  double threshold = 0.0;  ///< slots of a lower value are not drawn
  bool lazy = false;       ///< one drafter call per expanded node, when its turn comes
  /// Acceptance of a draw by its probability among the tokens that were left; empty: the same.
  Calibration calibration;
};

/// The `node_budget` slots of largest value: value down, depth up, parent up, draw index up. The
/// value of draw j at node u is known before the draw (trees.md 2.1):
///     prod of q over the path of u * (1 - sum of q over the first j draws at u).
/// With a calibration a(r), r = the draw's probability among what was left: a draw that is looked
/// at with chance v leaves v * a(r) to its child, and v * (1 - a(r)) to the next draw.
std::unique_ptr<TreeGrowth> slot_growth(int32_t node_budget, const SlotOptions& options,
                                        const RoundKey& key);

}  // namespace treespec
