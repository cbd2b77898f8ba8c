// SPDX-License-Identifier: Apache-2.0
// The partition by which rows of logits are summed: blocks of 64 lanes, element t of a block in
// lane t % 64. Lanes add in ascending order in float32, blocks in float64. Part of the contract:
// CPU and GPU give equal bits.
#pragma once

#include <cstdint>

#include "shared/half.hd.h"

namespace treespec::shared {

constexpr int64_t kLanes = 64;
constexpr int64_t kBlock = 4096;

/// 2^y for y <= 0 in float32, 2^-126 below -126 (and for NaN). Relative error under 3e-7.
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
  return p * bits_to_float(float_to_bits(shifted) << 23);
}

}  // namespace treespec::shared
