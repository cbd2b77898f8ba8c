// SPDX-License-Identifier: Apache-2.0
// Scores of nodes: the rounded sums that rank them, the same on CPU and GPU.
#pragma once

#include <cstdint>
#include <limits>

#include "shared/half.hd.h"
#include "shared/math.hd.h"

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

/// A log-probability by a temperature, still without its normaliser. Relative to the top first: no
/// temperature, however small, can lose the likeliest token.
TREESPEC_HD float tempered(float logprob, float top, double inverse_temperature) {
  const double relative = static_cast<double>(logprob) - static_cast<double>(top);
  return static_cast<float>(relative * inverse_temperature);
}

/// A point of a calibration: of the tokens of this draft probability, the share that is accepted.
struct CalibrationPoint {
  double probability, acceptance;
};

/// Acceptance of a token of draft probability q in (0, 1]: piecewise linear from (0, 0), flat after
/// the last point.
TREESPEC_HD double calibrated(const CalibrationPoint* points, int32_t num_points, double q) {
  CalibrationPoint before{0.0, 0.0};
  for (int32_t i = 0; i < num_points; ++i) {
    const CalibrationPoint point = points[i];
    if (q <= point.probability) {
      const double share = (q - before.probability) / (point.probability - before.probability);
      return before.acceptance + (point.acceptance - before.acceptance) * share;
    }
    before = point;
  }
  return before.acceptance;
}

/// The score that an acceptance makes of a log-probability; -inf where nothing is accepted.
TREESPEC_HD float calibrated_score(const CalibrationPoint* points, int32_t num_points,
                                   float logprob) {
  constexpr double kLeast = std::numeric_limits<double>::min();
  constexpr float kImpossibleScore = -std::numeric_limits<float>::infinity();
  const double q = exp_nonpositive(logprob < 0.0f ? static_cast<double>(logprob) : 0.0);
  const double accepted = calibrated(points, num_points, q);
  return accepted >= kLeast ? static_cast<float>(log_unit(accepted)) : kImpossibleScore;
}

}  // namespace treespec::shared
