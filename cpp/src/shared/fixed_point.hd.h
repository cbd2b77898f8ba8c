// SPDX-License-Identifier: Apache-2.0
// Order-free sums: values become integers first, so every order and device gives the same total.
#pragma once

#include <cstdint>

#include "treespec/hd.h"

namespace treespec::shared {

constexpr double kNormalisedScale = 1152921504606846976.0;  // 2^60: rows of mass about 1 (below 8)
constexpr double kRawScale = 17592186044416.0;  // 2^44: exp(l - max), mass up to V < 2^19

/// floor(value * 2^60) for 0 <= value < 8.
TREESPEC_HD int64_t to_fixed(double value) {
  return static_cast<int64_t>(value * kNormalisedScale);
}
/// floor(value * 2^44) for 0 <= value < 2^19.
TREESPEC_HD int64_t to_raw_fixed(double value) { return static_cast<int64_t>(value * kRawScale); }

TREESPEC_HD double from_fixed(uint64_t total) {
  return static_cast<double>(total) * (1.0 / kNormalisedScale);
}
TREESPEC_HD double from_raw_fixed(uint64_t total) {
  return static_cast<double>(total) * (1.0 / kRawScale);
}

/// floor(u * total) without rounding, for u in [0, 1) with 53 bits.
TREESPEC_HD uint64_t share_of(double u, uint64_t total) {
  const auto bits = static_cast<uint64_t>(u * 9007199254740992.0);  // 2^53
  const uint64_t low = (bits & 0xFFFFFFFFu) * (total & 0xFFFFFFFFu);
  const uint64_t middle = (bits >> 32) * (total & 0xFFFFFFFFu) + (low >> 32);
  const uint64_t other = (bits & 0xFFFFFFFFu) * (total >> 32) + (middle & 0xFFFFFFFFu);
  const uint64_t high = (bits >> 32) * (total >> 32) + (middle >> 32) + (other >> 32);
  const uint64_t rest = (other << 32) | (low & 0xFFFFFFFFu);
  return high << 11 | rest >> 53;  // of 2^53 * 2^64: 128 - 53 bits
}

/// The place in [0, total) that `offset` has in [0, mass).
TREESPEC_HD uint64_t rescale(uint64_t offset, uint64_t mass, uint64_t total) {
  if (mass == total) return offset;
  const double share = static_cast<double>(offset) / static_cast<double>(mass);
  const auto place = static_cast<uint64_t>(share * static_cast<double>(total));
  return place < total ? place : total - 1;
}

}  // namespace treespec::shared
