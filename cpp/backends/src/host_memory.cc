// SPDX-License-Identifier: Apache-2.0
#include "host_memory.h"

#include <cstdlib>
#include <cstring>
#include <new>

namespace treespec::exported {

void* HostMemory::allocate(int64_t bytes) {
  constexpr size_t kAlignment = 64;  // a cache line, and what vector units like
  const auto size = (static_cast<size_t>(bytes) + kAlignment - 1) / kAlignment * kAlignment;
  void* data = std::aligned_alloc(kAlignment, size);
  if (data == nullptr) throw std::bad_alloc();
  return std::memset(data, 0, size);
}

void HostMemory::release(void* data) noexcept { std::free(data); }

void HostMemory::clear(void* data, int64_t bytes) {
  std::memset(data, 0, static_cast<size_t>(bytes));
}

void HostMemory::copy(void* to, int64_t to_stride, const void* from, int64_t from_stride,
                      int64_t bytes, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(static_cast<char*>(to) + i * to_stride,
                static_cast<const char*>(from) + i * from_stride, static_cast<size_t>(bytes));
  }
}

void HostMemory::commit(ArrayView<const KvBuffer> buffers, int64_t base,
                        ArrayView<const int32_t> nodes) {
  commit_kv(buffers, base, nodes);
}

}  // namespace treespec::exported
