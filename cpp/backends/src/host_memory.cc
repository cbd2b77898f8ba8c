// SPDX-License-Identifier: Apache-2.0
#include "host_memory.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace treespec::exported {
namespace {

constexpr size_t kAlignment = 64;  // a cache line, and what vector units like

}  // namespace

void* HostMemory::allocate(int64_t bytes) {
  // Not aligned_alloc: what calloc gives is zero without a write, so rows that no text reaches cost
  // no memory. In front of the block stands where it came from.
  void* whole = std::calloc(static_cast<size_t>(bytes) + kAlignment, 1);
  if (whole == nullptr) throw std::bad_alloc();
  const auto address = reinterpret_cast<uintptr_t>(whole);
  char* data = static_cast<char*>(whole) + (kAlignment - address % kAlignment);
  std::memcpy(data - sizeof whole, &whole, sizeof whole);
  return data;
}

void HostMemory::release(void* data) noexcept {
  void* whole = nullptr;
  std::memcpy(&whole, static_cast<char*>(data) - sizeof whole, sizeof whole);
  std::free(whole);
}

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
