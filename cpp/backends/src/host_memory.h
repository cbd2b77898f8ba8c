// SPDX-License-Identifier: Apache-2.0
// Caches in host memory.
#pragma once

#include "treespec/graph_runner.h"

namespace treespec::exported {

class HostMemory final : public CacheMemory {
 public:
  void* allocate(int64_t bytes) override;
  void release(void* data) noexcept override;
  void clear(void* data, int64_t bytes) override;
  void copy(void* to, int64_t to_stride, const void* from, int64_t from_stride, int64_t bytes,
            int64_t count) override;
  void commit(ArrayView<const KvBuffer> buffers, int64_t base,
              ArrayView<const int32_t> nodes) override;
};

}  // namespace treespec::exported
