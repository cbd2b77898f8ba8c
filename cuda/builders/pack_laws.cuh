// SPDX-License-Identifier: Apache-2.0
// Packs the laws of drawn trees, which builders keep per node, one after the other.
#pragma once

#include <simt.cuh>

#include "treespec/device/tree_builder.h"

namespace treespec::device {

/// Where the laws of a batch are: byte offsets into the memory of each sequence.
struct LawStore {
  const void* memory = nullptr;
  int64_t bytes_each = 0;
  int64_t node_of_id = 0;  // int32 [max_nodes]: whose law that of a tree node is
  int64_t token = 0;       // int32 [nodes, width]
  int64_t prob = 0;        // float [nodes, width]
  int32_t width = 0;
};

/// `law.row_offset[r + 1]` is the size of row r before, its end after.
void pack_laws(Stream stream, const LawStore& store, const Trees& trees, const LawOutput& law);

}  // namespace treespec::device
