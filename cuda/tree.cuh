// SPDX-License-Identifier: Apache-2.0
// What kernels on trees share: bounds of a sequence, and its parents in shared memory.
#pragma once

#include <simt.cuh>

#include "treespec/device/trees.h"

namespace treespec::device {

/// ORs `bits` into the status word of sequence `b`.
TREESPEC_DEVICE void report(uint32_t* status, int b, uint32_t bits) {
  simt::atomic_or(status + b, bits);
}

/// num_nodes[b] kept within [1, max_nodes].
TREESPEC_DEVICE int32_t bounded_num_nodes(const Trees& trees, int b) {
  const int32_t claimed = trees.num_nodes[b];
  return claimed < 1 ? 1 : claimed > trees.max_nodes ? trees.max_nodes : claimed;
}

/// Parents of sequence `b` to shared memory, `max_nodes` of them; -1 for padding nodes and for
/// parents out of place, which are reported as kBadTree. The whole block takes part, and may read
/// `parent` afterwards. Returns bounded_num_nodes.
template <int kThreads>
TREESPEC_DEVICE int32_t load_parents(const Trees& trees, int b, int32_t* parent, uint32_t* status) {
  const int32_t num_nodes = bounded_num_nodes(trees, b);
  const int32_t* given = trees.parent + int64_t{b} * trees.max_nodes;
  bool bad = num_nodes != trees.num_nodes[b];
  for (int32_t i = simt::thread(); i < trees.max_nodes; i += kThreads) {
    const int32_t p = given[i];  // also of padding nodes: the load need not wait for num_nodes
    const bool sound = i >= num_nodes || (i == 0 ? p == -1 : p >= 0 && p < i);
    parent[i] = sound && i < num_nodes ? p : -1;
    bad = bad || !sound;
  }
  if (bad) report(status, b, kBadTree);
  simt::sync_block();
  return num_nodes;
}

}  // namespace treespec::device
