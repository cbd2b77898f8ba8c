// SPDX-License-Identifier: Apache-2.0
// How candidates of a row are ordered, and their log-probabilities: the same on CPU and GPU.
#pragma once

#include <cstdint>

#include "shared/half.hd.h"
#include "shared/math.hd.h"

namespace treespec::shared {

/// Bits that fall as the value rises; -0 counts as 0.
TREESPEC_HD uint32_t falling_bits(float value) {
  const uint32_t bits = float_to_bits(value + 0.0f);
  return (bits & 0x80000000u) != 0 ? bits : ~bits & 0x7FFFFFFFu;
}
TREESPEC_HD uint64_t falling_bits(double value) {
  constexpr uint64_t kSign = uint64_t{1} << 63;
  const auto bits = static_cast<uint64_t>(double_to_bits(value + 0.0));
  return (bits & kSign) != 0 ? bits : ~bits & ~kSign;
}
TREESPEC_HD float from_falling_bits(uint32_t bits) {
  return bits_to_float((bits & 0x80000000u) != 0 ? bits : ~bits & 0x7FFFFFFFu);
}

/// A value and its token in one word, smaller for a better candidate: value down, token up.
TREESPEC_HD uint64_t rank_word(float value, int32_t token) {
  return static_cast<uint64_t>(falling_bits(value)) << 32 | static_cast<uint32_t>(token);
}
TREESPEC_HD float value_of_word(uint64_t word) {
  return from_falling_bits(static_cast<uint32_t>(word >> 32));
}
TREESPEC_HD int32_t token_of_word(uint64_t word) { return static_cast<int32_t>(word); }

/// What a block contributes to the mass of its row: the sum of exp(scale * (x - row_top)), given
/// that of exp(scale * (x - block_top)).
TREESPEC_HD double block_mass(float block_top, double block_sum, float row_top, double scale) {
  const double below = static_cast<double>(block_top) - static_cast<double>(row_top);
  return exp_nonpositive(below * scale) * block_sum;
}
/// ln of the mass of a row, which is at least 1.
TREESPEC_HD double log_mass(double mass) { return -log_unit(1.0 / mass); }
/// Log-probability of a logit.
TREESPEC_HD float candidate_logprob(float logit, float row_top, double scale, double log_of_mass) {
  const double relative = (static_cast<double>(logit) - static_cast<double>(row_top)) * scale;
  const double logprob = relative - log_of_mass;
  return static_cast<float>(logprob < 0.0 ? logprob : 0.0);
}

}  // namespace treespec::shared
