// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "treespec/error.h"
#include "treespec/kv_commit.h"

namespace treespec {

void commit_kv(ArrayView<const KvBuffer> buffers, int64_t base, ArrayView<const int32_t> nodes) {
  TREESPEC_CHECK(base >= 0, "commit_kv: base must be >= 0, got ", base);
  for (int64_t d = 0; d < nodes.size(); ++d) {
    const int32_t previous = d == 0 ? -1 : nodes[d - 1];
    TREESPEC_CHECK(nodes[d] > previous, "commit_kv: nodes must ascend from 0 or more, got ",
                   nodes[d], " after ", previous);
  }
  const int64_t last = nodes.empty() ? -1 : nodes[nodes.size() - 1];
  for (const KvBuffer& buffer : buffers) {
    TREESPEC_CHECK(base <= buffer.num_rows && last < buffer.num_rows - base,
                   "commit_kv: base + node must be below the number of rows ", buffer.num_rows,
                   ", got ", base, " + ", last);
  }
  int64_t start = 0;  // leading nodes that stay where they are
  while (start < nodes.size() && nodes[start] == start) ++start;
  for (const KvBuffer& buffer : buffers) {
    for (int64_t slice = 0; slice < buffer.outer; ++slice) {
      char* rows = static_cast<char*>(buffer.data) + slice * buffer.outer_stride;
      for (int64_t d = start; d < nodes.size(); ++d) {
        std::memcpy(rows + (base + d) * buffer.row_stride,
                    rows + (base + nodes[d]) * buffer.row_stride,
                    static_cast<size_t>(buffer.row_bytes));
      }
    }
  }
}

}  // namespace treespec
