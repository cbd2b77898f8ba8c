// SPDX-License-Identifier: Apache-2.0
// Writes the tree of a sequence, padding and draws included.
#pragma once

#include <simt.cuh>

#include "block_sort.cuh"
#include "treespec/device/tree_builder.h"

namespace treespec::device {

/// The arrays of one sequence.
struct TreeView {
  int32_t max_nodes;
  int32_t* num_nodes;
  int32_t* token;
  int32_t* parent;
  int32_t* depth;
  float* path_logprob;
  int32_t* draw_offset;
  int32_t* draw;

  TREESPEC_DEVICE static TreeView of_sequence(const Trees& trees, int b) {
    const int64_t first = int64_t{b} * trees.max_nodes;
    return {trees.max_nodes,
            trees.num_nodes + b,
            trees.token + first,
            trees.parent + first,
            trees.depth + first,
            trees.path_logprob + first,
            trees.draw_offset + int64_t{b} * (trees.max_nodes + 1),
            trees.draw + int64_t{b} * trees.max_draws};
  }
};

struct TreeNode {
  int32_t token, parent, depth;
  float path_logprob;
};

/// The node arrays: `node(i)` for every i in [0, num_nodes), then padding.
template <int kThreads, class NodeOf>
TREESPEC_DEVICE void write_nodes(const TreeView& tree, int32_t num_nodes, NodeOf node) {
  if (simt::thread() == 0) *tree.num_nodes = num_nodes;
  for (int32_t i = simt::thread(); i < tree.max_nodes; i += kThreads) {
    const TreeNode n = i < num_nodes ? node(i) : TreeNode{0, -1, 0, 0.0f};
    tree.token[i] = n.token;
    tree.parent[i] = n.parent;
    tree.depth[i] = n.depth;
    tree.path_logprob[i] = n.path_logprob;
  }
}

/// The draws of a deterministic tree: children by id. `parent_of(i)`: of node i >= 1. `pair`:
/// shared memory for padded_to_sort(num_nodes - 1) numbers.
template <int kThreads, class ParentOf>
TREESPEC_DEVICE void write_children_as_draws(const TreeView& tree, int32_t num_nodes,
                                             ParentOf parent_of, uint32_t* pair) {
  const int32_t num_draws = num_nodes - 1;
  const int32_t padded = simt::padded_to_sort(num_draws);
  for (int32_t i = simt::thread(); i < padded; i += kThreads) {
    pair[i] = UINT32_MAX;
    if (i >= num_draws) continue;
    pair[i] = static_cast<uint32_t>(parent_of(i + 1)) << 16 | static_cast<uint32_t>(i + 1);
  }
  simt::sort_block<kThreads>(pair, padded, [](uint32_t a, uint32_t b) { return a < b; });
  for (int32_t i = simt::thread(); i < num_draws; i += kThreads) {
    tree.draw[i] = static_cast<int32_t>(pair[i] & 0xFFFFu);
  }
  for (int32_t i = simt::thread(); i <= tree.max_nodes; i += kThreads) {
    int32_t low = 0, high = num_draws;  // the first draw of a node >= i
    while (low < high) {
      const int32_t middle = (low + high) / 2;
      if (static_cast<int32_t>(pair[middle] >> 16) < i) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    tree.draw_offset[i] = low;
  }
}

}  // namespace treespec::device
