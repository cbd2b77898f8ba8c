// SPDX-License-Identifier: Apache-2.0
// The only door to the device: kernels, launches and all that kernels may use of CUDA. The header
// of the same name in tests/cpp/emulation runs the same kernels on the host, where they are tested;
// the include path chooses, hence `#include <simt.cuh>`.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "grid.h"
#include "treespec/error.h"
#include "treespec/stream.h"

/// Marks what runs on the device alone: a kernel's operator() and its helpers.
#define TREESPEC_DEVICE __device__ inline
/// The same for long functions off the hot path: called, not copied into every kernel.
#define TREESPEC_DEVICE_CALL __device__ __noinline__

namespace treespec::simt {

// --- Host ----------------------------------------------------------------------------------------

/// Throws CudaError that names `what` unless the call succeeded, and clears the pending error.
inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();
  throw CudaError(treespec::detail::message(what, ": ", cudaGetErrorName(status), ", ",
                                            cudaGetErrorString(status)));
}

namespace detail {
template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads) run(const __grid_constant__ Kernel kernel) {
  kernel();
}
}  // namespace detail

/// Runs `kernel()` on every thread of the grid, asynchronously on the stream. A kernel is a struct
/// of parameters with `kThreads` (threads of a block, a multiple of 32) and a
/// `TREESPEC_DEVICE void operator()() const`. Throws CudaError if the launch is refused.
template <class Kernel>
void launch(Stream stream, const Grid& grid, const Kernel& kernel) {
  static_assert(Kernel::kThreads % kWarpSize == 0 && Kernel::kThreads <= 1024);
  static_assert(std::is_trivially_copyable_v<Kernel> && sizeof(Kernel) <= 4096);
  check_grid(grid);
  if (grid.x == 0 || grid.y == 0) return;
  constexpr size_t kSharedWithoutAsking = 48 * 1024;
  if (grid.shared_bytes > kSharedWithoutAsking) {
    check(cudaFuncSetAttribute(detail::run<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(kMaxSharedBytes)),
          "cudaFuncSetAttribute");
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y));
  config.blockDim = dim3(Kernel::kThreads);
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream.handle);
  check(cudaLaunchKernelEx(&config, detail::run<Kernel>, kernel), "cudaLaunchKernelEx");
}

/// Copies between device memory; the ranges must not overlap.
inline void memcpy_async(Stream stream, void* to, const void* from, size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice,
                        static_cast<cudaStream_t>(stream.handle)),
        "cudaMemcpyAsync");
}

/// Sets every byte of device memory to `value`.
inline void memset_async(Stream stream, void* to, int value, size_t bytes) {
  check(cudaMemsetAsync(to, value, bytes, static_cast<cudaStream_t>(stream.handle)),
        "cudaMemsetAsync");
}

/// GPUs the driver offers; 0 without a driver.
inline int device_count() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  (void)cudaGetLastError();  // a machine without a driver is no error of the caller's
  return status == cudaSuccess ? count : 0;
}

// --- Inside a kernel: where am I -----------------------------------------------------------------

TREESPEC_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
TREESPEC_DEVICE int lane() { return thread() % kWarpSize; }
TREESPEC_DEVICE int warp() { return thread() / kWarpSize; }
TREESPEC_DEVICE int block() { return static_cast<int>(blockIdx.x); }
TREESPEC_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
TREESPEC_DEVICE int num_blocks() { return static_cast<int>(gridDim.x); }

/// `Grid::shared_bytes` of memory shared by the block, 16-byte aligned, not initialised.
TREESPEC_DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char treespec_shared_memory[];
  return treespec_shared_memory;
}

// --- Barriers and exchanges: every thread of the block, or every lane of the warp, takes part ----

/// Waits for all threads of the block; memory they wrote before is seen after.
TREESPEC_DEVICE void sync_block() { __syncthreads(); }
/// The same for the warp.
TREESPEC_DEVICE void sync_warp() { __syncwarp(); }
/// Orders this thread's writes before its later ones for other blocks (last-block patterns).
TREESPEC_DEVICE void fence() { __threadfence(); }

namespace detail {
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

/// Applies a 32-bit exchange to every word of a value of up to 32 bytes.
template <class T, class Exchange>
TREESPEC_DEVICE T exchange_words(const T& value, Exchange exchange) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) % 4 == 0 && sizeof(T) <= 32);
  uint32_t words[sizeof(T) / 4];
  memcpy(words, &value, sizeof value);
#pragma unroll
  for (uint32_t& word : words) word = exchange(word);
  T result;
  memcpy(&result, words, sizeof result);
  return result;
}
}  // namespace detail

/// The value of lane `source_lane` (taken modulo 32). T: 4 to 32 bytes, as for all shuffles.
template <class T>
TREESPEC_DEVICE T shuffle(const T& value, int source_lane) {
  return detail::exchange_words(value, [source_lane](uint32_t word) {
    return __shfl_sync(detail::kAllLanes, word, source_lane);
  });
}
/// The value of lane `lane() ^ mask`.
template <class T>
TREESPEC_DEVICE T shuffle_xor(const T& value, int mask) {
  return detail::exchange_words(
      value, [mask](uint32_t word) { return __shfl_xor_sync(detail::kAllLanes, word, mask); });
}
/// The value of lane `lane() - delta`; the first `delta` lanes keep theirs.
template <class T>
TREESPEC_DEVICE T shuffle_up(const T& value, int delta) {
  return detail::exchange_words(value, [delta](uint32_t word) {
    return __shfl_up_sync(detail::kAllLanes, word, static_cast<unsigned>(delta));
  });
}
/// Bit i: the predicate of lane i.
TREESPEC_DEVICE uint32_t ballot(bool predicate) {
  return __ballot_sync(detail::kAllLanes, predicate);
}
/// Whether any lane's predicate holds.
TREESPEC_DEVICE bool any(bool predicate) { return __any_sync(detail::kAllLanes, predicate) != 0; }

// --- Atomics on shared or global memory; integers alone, float sums would depend on the order ----

namespace detail {
/// The type CUDA's atomics know for a 4- or 8-byte integer.
template <class T>
using Atomic =
    std::conditional_t<sizeof(T) == 8,
                       unsigned long long,  // NOLINT(google-runtime-int): CUDA's own signature
                       std::conditional_t<std::is_signed_v<T>, int, unsigned>>;
template <class T>
constexpr bool kAtomic =
    std::is_same_v<T, int32_t> || std::is_same_v<T, uint32_t> || std::is_same_v<T, uint64_t>;
}  // namespace detail

/// Each returns the value before.
template <class T>
TREESPEC_DEVICE T atomic_add(T* address, std::common_type_t<T> value) {
  static_assert(detail::kAtomic<T>);
  using A = detail::Atomic<T>;
  return static_cast<T>(atomicAdd(reinterpret_cast<A*>(address), static_cast<A>(value)));
}
template <class T>
TREESPEC_DEVICE T atomic_max(T* address, std::common_type_t<T> value) {
  static_assert(detail::kAtomic<T>);
  using A = detail::Atomic<T>;
  return static_cast<T>(atomicMax(reinterpret_cast<A*>(address), static_cast<A>(value)));
}
template <class T>
TREESPEC_DEVICE T atomic_min(T* address, std::common_type_t<T> value) {
  static_assert(detail::kAtomic<T>);
  using A = detail::Atomic<T>;
  return static_cast<T>(atomicMin(reinterpret_cast<A*>(address), static_cast<A>(value)));
}
template <class T>
TREESPEC_DEVICE T atomic_or(T* address, std::common_type_t<T> value) {
  static_assert(detail::kAtomic<T>);
  using A = detail::Atomic<T>;
  return static_cast<T>(atomicOr(reinterpret_cast<A*>(address), static_cast<A>(value)));
}

// --- Bits and wide memory access -----------------------------------------------------------------

/// Number of set bits.
TREESPEC_DEVICE int count_bits(uint32_t bits) { return __popc(bits); }
/// Index of the lowest set bit, -1 for 0.
TREESPEC_DEVICE int lowest_bit(uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }
/// Index of the highest set bit, -1 for 0.
TREESPEC_DEVICE int highest_bit(uint32_t bits) { return 31 - __clz(static_cast<int>(bits)); }

struct Words4 {
  uint32_t word[4];
};

/// One 16-byte access; the address must be a multiple of 16.
TREESPEC_DEVICE Words4 load_16_bytes(const void* from) {
  const uint4 v = *static_cast<const uint4*>(from);
  return {{v.x, v.y, v.z, v.w}};
}
TREESPEC_DEVICE void store_16_bytes(void* to, const Words4& v) {
  *static_cast<uint4*>(to) = make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]);
}
/// The same for global memory that the whole launch only reads, and this thread but once (logits):
/// past the first-level cache.
TREESPEC_DEVICE Words4 load_16_bytes_once(const void* from) {
  const uint4 v = __ldcs(static_cast<const uint4*>(from));
  return {{v.x, v.y, v.z, v.w}};
}

}  // namespace treespec::simt
