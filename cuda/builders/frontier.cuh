// SPDX-License-Identifier: Apache-2.0
// Writes the frontier of a sequence.
#pragma once

#include <simt.cuh>

#include "treespec/device/tree_builder.h"

namespace treespec::device {

/// The frontier of one sequence.
struct FrontierView {
  int32_t max_nodes;
  int32_t* num_nodes;
  int32_t* index;
  int32_t* parent;
  int32_t* token;
  int32_t* depth;
  int32_t* state;

  TREESPEC_DEVICE static FrontierView of_sequence(const Frontier& frontier, int b) {
    const int64_t first = int64_t{b} * frontier.max_nodes;
    return {frontier.max_nodes,      frontier.num_nodes + b, frontier.index + first,
            frontier.parent + first, frontier.token + first, frontier.depth + first,
            frontier.state + first};
  }

  TREESPEC_DEVICE void put(int32_t i, const FrontierNode& node) const {
    index[i] = node.index;
    parent[i] = node.parent;
    token[i] = node.token;
    depth[i] = node.depth;
    state[i] = node.state;
  }
  /// Sets the number of nodes and pads behind them.
  template <int kThreads>
  TREESPEC_DEVICE void end_at(int32_t count) const {
    if (simt::thread() == 0) *num_nodes = count;
    for (int32_t i = count + simt::thread(); i < max_nodes; i += kThreads)
      put(i, {-1, -1, 0, 0, 0});
  }
  /// [root], or nothing.
  template <int kThreads>
  TREESPEC_DEVICE void start(bool with_root, int32_t root_token) const {
    if (with_root && simt::thread() == 0) put(0, {0, -1, root_token, 0, 0});
    end_at<kThreads>(with_root ? 1 : 0);
  }
};

/// The node budget of a sequence within the envelope; reports one that is not.
TREESPEC_DEVICE int32_t budget_of(const BuildRequest& request, const Trees& trees, int b,
                                  uint32_t* status) {
  const int32_t given = request.node_budget[b];
  const int32_t most = trees.max_nodes - 1;
  const int32_t budget = given < 0 ? 0 : given < most ? given : most;
  if (given != budget && simt::thread() == 0) simt::atomic_or(status + b, kOutOfBounds);
  return budget;
}

TREESPEC_DEVICE int32_t root_token_of(const BuildRequest& request, int b) {
  return request.root_token != nullptr ? request.root_token[b] : 0;
}

}  // namespace treespec::device
