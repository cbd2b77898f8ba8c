// SPDX-License-Identifier: Apache-2.0
// Reductions and prefix sums over the threads of a warp or a block, in a fixed order: pairs at
// distance 16, 8, 4, 2, 1 of a warp, then the same over warps.
#pragma once

#include <cstdint>
#include <simt.cuh>

namespace treespec::simt {

struct Sum {
  template <class T>
  TREESPEC_DEVICE T operator()(const T& a, const T& b) const {
    return a + b;
  }
};
struct Max {
  template <class T>
  TREESPEC_DEVICE T operator()(const T& a, const T& b) const {
    return a < b ? b : a;
  }
};
struct Min {
  template <class T>
  TREESPEC_DEVICE T operator()(const T& a, const T& b) const {
    return b < a ? b : a;
  }
};

/// Combines the values of a warp; every lane gets the result. `combine` must commute.
template <class T, class Combine>
TREESPEC_DEVICE T warp_reduce(T value, Combine combine) {
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value = combine(value, shuffle_xor(value, distance));
  }
  return value;
}

/// Combines the values of a block; every thread gets the result. `identity` changes nothing it is
/// combined with. `scratch`: kThreads / 32 values of shared memory, free again afterwards.
template <int kThreads, class T, class Combine>
TREESPEC_DEVICE T block_reduce(T value, T identity, Combine combine, T* scratch) {
  constexpr int kWarps = kThreads / kWarpSize;
  value = warp_reduce(value, combine);
  if (kWarps == 1) return value;
  if (lane() == 0) scratch[warp()] = value;
  sync_block();
  value = warp_reduce(lane() < kWarps ? scratch[lane()] : identity, combine);
  sync_block();
  return value;
}

/// Sum of the values of this and all lower lanes.
template <class T>
TREESPEC_DEVICE T warp_inclusive_sum(T value) {
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const T below = shuffle_up(value, distance);
    if (lane() >= distance) value += below;
  }
  return value;
}

template <class T>
struct PrefixSum {
  T before;  ///< sum over lower threads
  T total;   ///< sum over the block
};

/// Prefix sums of integers over the threads of a block. `scratch` as for block_reduce.
template <int kThreads, class T>
TREESPEC_DEVICE PrefixSum<T> block_prefix_sum(T value, T* scratch) {
  constexpr int kWarps = kThreads / kWarpSize;
  const T through = warp_inclusive_sum(value);
  if (lane() == kWarpSize - 1) scratch[warp()] = through;
  sync_block();
  const T through_warp = warp_inclusive_sum(lane() < kWarps ? scratch[lane()] : T{0});
  sync_block();
  const T before_warp = shuffle(through_warp, warp() > 0 ? warp() - 1 : 0);
  return {(warp() > 0 ? before_warp : T{0}) + through - value,
          shuffle(through_warp, kWarpSize - 1)};
}

}  // namespace treespec::simt
