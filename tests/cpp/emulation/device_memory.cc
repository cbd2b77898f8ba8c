// SPDX-License-Identifier: Apache-2.0
#include "device/device_memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "check.h"
#include "emulation.h"

namespace treespec::test {
namespace {

constexpr size_t kGuardBytes = 256;  // also the alignment
constexpr unsigned char kGuard = 0xC3;

size_t rounded(size_t bytes) { return (bytes + kGuardBytes - 1) / kGuardBytes * kGuardBytes; }

}  // namespace

bool has_device() { return true; }
int num_orders() { return 4; }
void set_order(int order) { simt::emulation::set_order(static_cast<uint64_t>(order)); }
int num_cases(int most) {
  return std::getenv("TREESPEC_ALL_CASES") != nullptr ? most : (most + 2) / 3;
}

// The size, a guard, the memory, a guard.
void* device_allocate(size_t bytes) {
  const size_t size = rounded(bytes) + 3 * kGuardBytes;
  auto* memory = static_cast<unsigned char*>(std::aligned_alloc(kGuardBytes, size));
  CHECK(memory != nullptr);
  std::memset(memory, kGuard, size);
  std::memcpy(memory, &bytes, sizeof bytes);
  return memory + 2 * kGuardBytes;
}

void device_free(void* memory) {
  auto* start = static_cast<unsigned char*>(memory) - 2 * kGuardBytes;
  size_t bytes = 0;
  std::memcpy(&bytes, start, sizeof bytes);
  const auto intact = [](const unsigned char* from, const unsigned char* to) {
    return std::all_of(from, to, [](unsigned char c) { return c == kGuard; });
  };
  const unsigned char* end = start + 2 * kGuardBytes + bytes;
  CHECK(intact(start + sizeof bytes, start + 2 * kGuardBytes));
  CHECK(intact(end, start + 3 * kGuardBytes + rounded(bytes)));
  std::free(start);
}

void copy_to_device(void* to, const void* from, size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}
void copy_to_host(void* to, const void* from, size_t bytes) { copy_to_device(to, from, bytes); }

}  // namespace treespec::test
