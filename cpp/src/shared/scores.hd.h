// SPDX-License-Identifier: Apache-2.0
// Scores of nodes: the rounded sums that rank them, the same on CPU and GPU.
#pragma once

#include <cstdint>

#include "shared/half.hd.h"

namespace treespec::shared {

/// Rounding of a log-softmax may leave a certain token slightly above 0.
constexpr float kLargestLogprob = 1e-3f;

/// Score of a child. A rounded-up log-probability counts as 0: no child may outrank its parent.
TREESPEC_HD float child_score(float parent_score, float logprob) {
  return parent_score + (logprob < 0.0f ? logprob : 0.0f);
}

/// Scores are never positive, so that their magnitude, as bits, falls with them; both zeros are 0.
TREESPEC_HD uint32_t magnitude_of(float score) { return float_to_bits(score) & 0x7FFFFFFFu; }
/// The score of a magnitude; +0 for 0, as sums give it.
TREESPEC_HD float score_of(uint32_t magnitude) { return 0.0f - bits_to_float(magnitude); }

}  // namespace treespec::shared
