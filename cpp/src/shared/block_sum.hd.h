// SPDX-License-Identifier: Apache-2.0
// The partition by which rows are summed, part of the contract: CPU and GPU give equal bits. A row
// is cut into blocks of 4096 entries; entry t of a block belongs to lane t % 256. A lane adds its
// entries in ascending order, the lanes of a block are added pairwise in float64 (lane_tree), and
// blocks add in ascending order in float64. On a GPU one warp takes a block: a thread holds eight
// neighbouring lanes, so that its loads are 16 bytes of half precision and three levels of the tree
// are its own.
#pragma once

#include <cmath>
#include <cstdint>

#include "shared/half.hd.h"
#include "shared/math.hd.h"

namespace treespec::shared {

constexpr int64_t kLanes = 256;
constexpr int64_t kBlock = 4096;

TREESPEC_HD int64_t num_blocks(int64_t size) { return (size + kBlock - 1) / kBlock; }

/// Sum of 2^k lane sums: neighbours first, then neighbouring pairs, and so on.
template <int64_t kSize = kLanes>
TREESPEC_HD double lane_tree(const double* lane) {
  if constexpr (kSize == 1) {
    return lane[0];
  } else {
    double pair[kSize / 2];
    for (int64_t i = 0; i < kSize / 2; ++i) pair[i] = lane[2 * i] + lane[2 * i + 1];
    return lane_tree<kSize / 2>(pair);
  }
}

/// 2^y for y <= 0 in float32; 0 below -126 (so for -inf). Relative error under 3e-7. Its fused
/// steps are explicit, so that they are the same where a compiler may not fuse on its own.
TREESPEC_HD float exp2_nonpositive(float y) {
  // 1.5 * 2^23 rounds to nearest; 127 makes the low bits the exponent field of 2^integer, and -127
  // a field of 0, which is the number 0.
  constexpr float kRoundToInteger = 12582912.0f + 127.0f;
  const float bounded = y >= -126.0f ? y : -127.0f;
  const float shifted = bounded + kRoundToInteger;
  const float r = bounded - (shifted - kRoundToInteger);
  // Interpolates 2^r at the Chebyshev points of |r| <= 1/2.
  float p = 0.0013390875f;
  p = fmaf(p, r, 0.00967604388f);
  p = fmaf(p, r, 0.0555035695f);
  p = fmaf(p, r, 0.240221068f);
  p = fmaf(p, r, 0.693147182f);
  p = fmaf(p, r, 1.00000012f);
  return p * bits_to_float(float_to_bits(shifted) << 23);
}

/// A term of the sum over a row: exp(scale * (score - top)), scale > 0, score <= top.
TREESPEC_HD float exp_unit(float score, float top, double scale) {
  constexpr double kLog2E = 1.4426950408889634074;
  return exp2_nonpositive((score - top) * static_cast<float>(scale * kLog2E));
}
TREESPEC_HD double exp_unit(double score, double top, double scale) {
  return exp_nonpositive((score - top) * scale);
}

}  // namespace treespec::shared
