// SPDX-License-Identifier: Apache-2.0
// Step 6 of a round on the device: the accepted rows of all layers, heads and sequences move in one
// launch, in contiguous and in paged caches.
#pragma once

#include <cstddef>
#include <cstdint>

#include "treespec/device/trees.h"
#include "treespec/stream.h"

namespace treespec::device {

/// One tensor of a cache, e.g. the keys of a layer with outer = heads: pages of rows, any strides.
/// A contiguous cache is a paged one whose page b holds all rows of sequence b.
struct KvBuffer {
  void* data = nullptr;      ///< first row of page 0 in the first outer slice
  int64_t page_stride = 0;   ///< bytes between pages; contiguous: between sequences
  int64_t outer = 0;         ///< heads (times 2 when keys and values share the tensor)
  int64_t outer_stride = 0;  ///< bytes between outer slices
  int64_t row_stride = 0;    ///< bytes between the rows of a page
  int64_t row_bytes = 0;     ///< bytes of a row (contiguous)
};

/// All tensors of a cache. The table of buffers lies in device memory and may be written once.
struct KvCache {
  const KvBuffer* buffers = nullptr;  ///< [num_buffers], device memory
  int32_t num_buffers = 0;
  int64_t max_outer = 0;      ///< largest `outer` of the buffers: it and the next size the launch,
  int64_t max_row_bytes = 0;  ///< largest `row_bytes`: too small only costs time
  int32_t page_size = 0;      ///< rows of a page; contiguous: rows a sequence may have
  /// [batch, max_pages]: page of the sequence's rows [p * page_size, (p + 1) * page_size); pages
  /// that no accepted or moved row lies on are not looked at. Null: contiguous.
  const int32_t* block_table = nullptr;
  int32_t max_pages = 1;  ///< of a sequence; contiguous: 1
  int32_t num_pages = 0;  ///< of the whole cache; contiguous: sequences
};

/// What verification accepted, in device memory.
struct AcceptedPaths {
  int32_t batch = 0;
  int32_t max_depth = 0;
  /// [batch, max_depth + 1]: the root and the accepted nodes, ascending ids; what follows is
  /// ignored.
  const int32_t* nodes = nullptr;
  const int32_t* num_accepted = nullptr;  ///< [batch]; the root not counted; -1: nothing to commit
};

/// Moves row prefix_length[b] + nodes[d] of sequence b to row prefix_length[b] + d for the root and
/// every accepted node, in place, in every buffer. A sequence moves whole or not at all: not when
/// its status word is set before, and not with
/// kBadTree: nodes that do not ascend from 0 or more;
/// kOutOfBounds: num_accepted above max_depth, or a row or page outside the cache.
/// 16 bytes an access where address, strides and row_bytes of a buffer allow it, else 4 or 1.
void commit_kv(Stream stream, const KvCache& cache, const AcceptedPaths& paths,
               const int32_t* prefix_length, uint32_t* status);

/// The same launch also adds num_accepted[b] + 1 to prefix_length[b] of every sequence that moved.
/// `workspace`: commit_kv_workspace_bytes(batch) bytes, zero before the first call; every call
/// leaves them so.
void commit_kv_and_advance(Stream stream, const KvCache& cache, const AcceptedPaths& paths,
                           int32_t* prefix_length, void* workspace, size_t workspace_bytes,
                           uint32_t* status);
size_t commit_kv_workspace_bytes(int32_t batch);

}  // namespace treespec::device
