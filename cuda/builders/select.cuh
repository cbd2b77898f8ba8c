// SPDX-License-Identifier: Apache-2.0
// Counting scores in buckets, and the k-th best of scores that are never stored.
#pragma once

#include <simt.cuh>

#include "block_reduce.cuh"

namespace treespec::device {

constexpr int kBuckets = 256;

/// Counts in shared memory.
struct Buckets {
  struct Found {
    int32_t bucket;
    int32_t before;  // in the buckets before it
  };
  int32_t* size;  // [kBuckets]
  Found* found;

  TREESPEC_DEVICE void add(int32_t bucket) const { simt::atomic_add(&size[bucket], 1); }

  template <int kThreads>
  TREESPEC_DEVICE void clear() const {
    simt::sync_block();
    for (int i = simt::thread(); i < kBuckets; i += kThreads) size[i] = 0;
    simt::sync_block();
  }

  /// The bucket that holds the `wanted`-th, of at least as many; the whole block takes part, after
  /// a barrier.
  TREESPEC_DEVICE Found holding(int32_t wanted) const {
    if (simt::warp() == 0) {
      constexpr int kShare = kBuckets / simt::kWarpSize;
      const int first = simt::lane() * kShare;
      int32_t own = 0;
      for (int i = 0; i < kShare; ++i) own += size[first + i];
      const int32_t through = simt::warp_inclusive_sum(own);
      int32_t before = through - own;
      if (before < wanted && wanted <= through) {
        int bucket = first;
        for (; before + size[bucket] < wanted; ++bucket) before += size[bucket];
        *found = {bucket, before};
      }
    }
    simt::sync_block();
    const Found result = *found;
    simt::sync_block();
    return result;
  }
};

/// The `wanted`-th smallest magnitude, of at least as many, byte by byte: `for_all(look_at)` calls
/// look_at(magnitude) for each of them, four times over.
template <int kThreads, class ForAll>
TREESPEC_DEVICE uint32_t select_magnitude(const Buckets& buckets, int32_t wanted, ForAll for_all) {
  uint32_t prefix = 0;  // leading bytes of the result
  for (int shift = 24; shift >= 0; shift -= 8) {
    buckets.clear<kThreads>();
    for_all([&](uint32_t magnitude) {
      if (shift < 24 && magnitude >> (shift + 8) != prefix) return;
      buckets.add(static_cast<int32_t>(magnitude >> shift & 0xFFu));
    });
    simt::sync_block();
    const Buckets::Found found = buckets.holding(wanted);
    prefix = prefix << 8 | static_cast<uint32_t>(found.bucket);
    wanted -= found.before;
  }
  return prefix;
}

}  // namespace treespec::device
