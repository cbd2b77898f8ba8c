// SPDX-License-Identifier: Apache-2.0
// Trees and draft laws of a batch in device memory, and the status word kernels report through.
#pragma once

#include <cstdint>

namespace treespec::device {

/// Trees of a batch in a fixed envelope. Sequence b owns nodes [b * max_nodes, (b + 1) * max_nodes)
/// of every node array; its first num_nodes[b] are there, node 0 is the root. All pointers are
/// device memory of the caller's; ops that do not read an array take null for it.
struct Trees {
  int32_t batch = 0;
  int32_t max_nodes = 0;         ///< the root counted
  int32_t max_draws = 0;         ///< draws of a sequence; 0: no draws are kept
  int32_t* num_nodes = nullptr;  ///< [batch], in [1, max_nodes]
  /// The arrays of TokenTree. Nodes from num_nodes[b] on: token 0, parent -1, depth 0,
  /// path_logprob 0, no draws.
  int32_t* token = nullptr;        ///< [batch, max_nodes]
  int32_t* parent = nullptr;       ///< [batch, max_nodes]
  int32_t* depth = nullptr;        ///< [batch, max_nodes]
  float* path_logprob = nullptr;   ///< [batch, max_nodes]
  int32_t* draw_offset = nullptr;  ///< [batch, max_nodes + 1], into the sequence's own draws
  int32_t* draw = nullptr;         ///< [batch, max_draws], node ids
};

/// The law of the first child of each node: sparse rows, as in DraftRows, or dense ones.
struct DraftLaw {
  const int32_t* row_of_node = nullptr;  ///< [batch, max_nodes], -1: drew nothing; null: no law
  int32_t vocab_size = 0;
  const int64_t* row_offset = nullptr;  ///< sparse: row r is entries [row_offset[r], [r + 1])
  const int32_t* token = nullptr;       ///< sparse: ascending in a row; null: rows are dense
  int32_t max_support = 0;              ///< sparse: most entries of a row
  const float* prob = nullptr;          ///< sparse: per entry; dense: row r at r * row_stride
  int64_t row_stride = 0;               ///< dense: elements between rows
};

/// What a kernel found wrong with device data, as bits of `uint32_t status[batch]`. Ops OR them in,
/// the caller zeroes the words. Whatever the data, kernels stay in bounds; the results of a
/// sequence with a bit set are not to be used.
enum Status : uint32_t {
  kOk = 0,
  kNotANumber = 1,   ///< NaN where a score or probability was read
  kEmptyRow = 2,     ///< a row without mass, or nothing left in it to draw
  kBadTree = 4,      ///< num_nodes, parents, depths or draws break the rules of TokenTree
  kOutOfBounds = 8,  ///< a row, page or capacity beyond the envelope
};

}  // namespace treespec::device
