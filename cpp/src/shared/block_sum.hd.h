// SPDX-License-Identifier: Apache-2.0
// The partition by which rows are summed, part of the contract: CPU and GPU give equal bits. A row
// is cut into blocks of 4096 entries; entry t of a block belongs to lane t % 256. A lane adds its
// entries in ascending order, the lanes of a block are added pairwise in float64 (lane_tree), and
// blocks add in ascending order in float64. On a GPU one warp takes a block: a thread holds eight
// neighbouring lanes, so that its loads are 16 bytes of half precision and three levels of the tree
// are its own.
#pragma once

#include <cstdint>

#include "shared/half.hd.h"

namespace treespec::shared {

constexpr int64_t kLanes = 256;
constexpr int64_t kBlock = 4096;

TREESPEC_HD int64_t num_blocks(int64_t size) { return (size + kBlock - 1) / kBlock; }

/// Sum of `kLanes` lane sums: neighbours first, then neighbouring pairs, and so on. Destroys `lane`.
TREESPEC_HD double lane_tree(double* lane) {
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t i = 0; i < width; ++i) lane[i] = lane[2 * i] + lane[2 * i + 1];
  }
  return lane[0];
}

/// 2^y for y <= 0 in float32; 0 below -126 (so for -inf). Relative error under 3e-7.
TREESPEC_HD float exp2_nonpositive(float y) {
  // 1.5 * 2^23 rounds to nearest; 127 makes the low bits the exponent field of 2^integer.
  constexpr float kRoundToInteger = 12582912.0f + 127.0f;
  // The bits of negative numbers rise with their magnitude, and an integer minimum is one
  // instruction where a float one has NaN to think of.
  constexpr uint32_t kMinus126 = 0xC2FC0000u;
  const uint32_t bits = float_to_bits(y);
  const float clamped = bits_to_float(bits < kMinus126 ? bits : kMinus126);
  const float shifted = clamped + kRoundToInteger;
  const float r = clamped - (shifted - kRoundToInteger);
  // Interpolates 2^r at the Chebyshev points of |r| <= 1/2.
  float p = 0.0013390875f;
  p = p * r + 0.00967604388f;
  p = p * r + 0.0555035695f;
  p = p * r + 0.240221068f;
  p = p * r + 0.693147182f;
  p = p * r + 1.00000012f;
  const float power = p * bits_to_float(float_to_bits(shifted) << 23);
  return bits > kMinus126 ? 0.0f : power;
}

}  // namespace treespec::shared
