// SPDX-License-Identifier: Apache-2.0
// The names of cuda/simt.cuh, on the host: kernels are compiled as C++ and run by emulation.h. What
// each name means stands there; what is checked here beyond, at the name.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <typeinfo>

#include "emulation.h"
#include "grid.h"
#include "treespec/error.h"
#include "treespec/stream.h"

#define TREESPEC_DEVICE inline
#define TREESPEC_DEVICE_CALL inline

namespace treespec::simt {

// --- Host ----------------------------------------------------------------------------------------

/// Runs the whole launch before it returns; throws emulation::Mistake.
template <class Kernel>
void launch(Stream /*stream*/, const Grid& grid, const Kernel& kernel) {
  static_assert(Kernel::kThreads % kWarpSize == 0 && Kernel::kThreads <= 1024);
  static_assert(std::is_trivially_copyable_v<Kernel> && sizeof(Kernel) <= 4096);
  check_grid(grid);
  const auto body = [](const void* of) { (*static_cast<const Kernel*>(of))(); };
  emulation::run_grid(typeid(Kernel).name(), body, &kernel, Kernel::kThreads, grid);
}

inline void memcpy_async(Stream /*stream*/, void* to, const void* from, size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}
inline void memset_async(Stream /*stream*/, void* to, int value, size_t bytes) {
  if (bytes > 0) std::memset(to, value, bytes);
}

/// One: this machine.
inline int device_count() { return 1; }

// --- Inside a kernel: where am I -----------------------------------------------------------------

inline int thread() { return emulation::position->thread; }
inline int lane() { return thread() % kWarpSize; }
inline int warp() { return thread() / kWarpSize; }
inline int block() { return emulation::position->block; }
inline int block_y() { return emulation::position->block_y; }
inline int num_blocks() { return emulation::position->num_blocks; }

/// Full of rubbish when a block starts; a write past its end is found when the block ends.
inline char* shared_memory() { return emulation::position->shared_memory; }

// --- Barriers and exchanges ----------------------------------------------------------------------

// The default arguments are the place of the call: threads must meet at one place.
#define TREESPEC_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void sync_block(TREESPEC_SITE) { emulation::wait_for_block({"sync_block", file, line}); }
inline void sync_warp(TREESPEC_SITE) { emulation::exchange({"sync_warp", file, line}, "", 0); }
/// Nothing to do: blocks run one after the other. So a missing one is not found.
inline void fence() {}

namespace detail {
template <class T>
T shuffled(const emulation::Site& site, const T& value, int source_lane) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) % 4 == 0 && sizeof(T) <= 32);
  const emulation::Table& table = emulation::exchange(site, &value, sizeof(T) / 4);
  T result;
  std::memcpy(&result, table.word[source_lane], sizeof result);
  return result;
}
}  // namespace detail

template <class T>
T shuffle(const T& value, int source_lane, TREESPEC_SITE) {
  return detail::shuffled({"shuffle", file, line}, value, source_lane & (kWarpSize - 1));
}
template <class T>
T shuffle_xor(const T& value, int mask, TREESPEC_SITE) {
  return detail::shuffled({"shuffle_xor", file, line}, value, (lane() ^ mask) & (kWarpSize - 1));
}
template <class T>
T shuffle_up(const T& value, int delta, TREESPEC_SITE) {
  const int source = lane() - delta;
  return detail::shuffled({"shuffle_up", file, line}, value, source < 0 ? lane() : source);
}

inline uint32_t ballot(bool predicate, TREESPEC_SITE) {
  const uint32_t mine = predicate ? 1 : 0;
  const emulation::Table& table = emulation::exchange({"ballot", file, line}, &mine, 1);
  uint32_t bits = 0;
  for (int i = 0; i < kWarpSize; ++i) bits |= table.word[i][0] << i;
  return bits;
}
inline bool any(bool predicate, TREESPEC_SITE) {
  const uint32_t mine = predicate ? 1 : 0;
  const emulation::Table& table = emulation::exchange({"any", file, line}, &mine, 1);
  uint32_t found = 0;
  for (int i = 0; i < kWarpSize; ++i) found |= table.word[i][0];
  return found != 0;
}

#undef TREESPEC_SITE

// --- Atomics -------------------------------------------------------------------------------------

namespace detail {
template <class T>
constexpr bool kAtomic =
    std::is_same_v<T, int32_t> || std::is_same_v<T, uint32_t> || std::is_same_v<T, uint64_t>;
template <class T>
T exchange_memory(T* address, T value) {
  static_assert(kAtomic<T>);
  const T before = *address;
  *address = value;
  return before;
}
}  // namespace detail

template <class T>
T atomic_add(T* address, std::common_type_t<T> value) {
  // Wraps around as on a GPU.
  const auto sum =
      static_cast<std::make_unsigned_t<T>>(*address) + static_cast<std::make_unsigned_t<T>>(value);
  return detail::exchange_memory(address, static_cast<T>(sum));
}
template <class T>
T atomic_max(T* address, std::common_type_t<T> value) {
  return detail::exchange_memory(address, *address < value ? value : *address);
}
template <class T>
T atomic_min(T* address, std::common_type_t<T> value) {
  return detail::exchange_memory(address, value < *address ? value : *address);
}
template <class T>
T atomic_or(T* address, std::common_type_t<T> value) {
  return detail::exchange_memory(address, *address | value);
}

// --- Bits and wide memory access -----------------------------------------------------------------

inline int count_bits(uint32_t bits) { return __builtin_popcount(bits); }
inline int lowest_bit(uint32_t bits) { return bits == 0 ? -1 : __builtin_ctz(bits); }
inline int highest_bit(uint32_t bits) { return bits == 0 ? -1 : 31 - __builtin_clz(bits); }

struct Words4 {
  uint32_t word[4];
};

/// Fails for an address that is no multiple of 16, as all three do.
inline Words4 load_16_bytes(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) emulation::fail("misaligned 16-byte access");
  Words4 words;
  std::memcpy(&words, from, sizeof words);
  return words;
}
inline void store_16_bytes(void* to, const Words4& words) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0) emulation::fail("misaligned 16-byte access");
  std::memcpy(to, &words, sizeof words);
}
inline Words4 load_16_bytes_once(const void* from) { return load_16_bytes(from); }

}  // namespace treespec::simt
