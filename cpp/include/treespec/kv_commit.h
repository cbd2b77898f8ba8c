// SPDX-License-Identifier: Apache-2.0
// Step 6 of a round: keep the KV rows of the accepted path, drop the rest.
#pragma once

#include <cstdint>

#include "treespec/array_view.h"

namespace treespec {

/// One tensor that holds rows of a sequence: `[outer, rows, row_bytes]` with any strides, e.g. the
/// keys of a layer, outer = heads. Rows are moved inside it; nothing else is touched.
struct KvBuffer {
  void* data = nullptr;      ///< first row of the sequence in the first outer slice
  int64_t outer = 0;         ///< heads (times 2 when keys and values share the tensor)
  int64_t outer_stride = 0;  ///< bytes between outer slices
  int64_t row_stride = 0;    ///< bytes between rows
  int64_t row_bytes = 0;     ///< bytes of a row (contiguous)
  int64_t num_rows = 0;      ///< rows the buffer can hold
};

/// Moves row `base + nodes[d]` to row `base + d` for every d, in place, in every buffer.
/// `nodes`: root and accepted path, ascending node ids (so that nodes[d] >= d and no source is
/// overwritten before it is read). Throws InvalidArgument for nodes that are not ascending or rows
/// outside a buffer, before anything moves.
void commit_kv(ArrayView<const KvBuffer> buffers, int64_t base, ArrayView<const int32_t> nodes);

}  // namespace treespec
