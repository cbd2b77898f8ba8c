// SPDX-License-Identifier: Apache-2.0
// What a selector reads of laws, token by token: the same on CPU and GPU. Sums over tokens are
// those of block_sum.hd.h, in float64.
#pragma once

#include <cmath>
#include <cstdint>

#include "shared/block_sum.hd.h"
#include "shared/math.hd.h"
#include "treespec/selector.h"

namespace treespec::shared {

constexpr double kLeastLogarithm = -20.723265836946411;  // of kLeastProbability

/// A probability and its logarithm, at least kLeastLogarithm.
struct LawPoint {
  double prob = 0.0;
  double log_prob = kLeastLogarithm;
};

/// How weights and scores of a row become its law.
struct Normaliser {
  double inverse_mass, log_mass;
  double top, inverse_temperature;  // of the scores that were exponentiated

  /// `mass`: at least 1, since the likeliest token weighs 1.
  TREESPEC_HD static Normaliser of(double mass, double top, double inverse_temperature) {
    const double inverse_mass = 1.0 / mass;
    return {inverse_mass, -log_unit(inverse_mass), top, inverse_temperature};
  }
  /// `weight` > 0, or so low a score that it is 0. The logarithm comes from the score: it is exact
  /// to more digits than the weight, and cheaper.
  TREESPEC_HD LawPoint point(double weight, double score) const {
    const double log_prob = (score - top) * inverse_temperature - log_mass;
    return {weight * inverse_mass, log_prob > kLeastLogarithm ? log_prob : kLeastLogarithm};
  }
};

/// A point of a law that has no scores.
TREESPEC_HD LawPoint point_of(double prob) {
  return {prob, log_unit(prob > kLeastProbability ? prob : kLeastProbability)};
}

/// What a token adds to the features.
TREESPEC_HD LawFeatures law_terms(const LawPoint& target, const LawPoint& draft,
                                  const LawPoint& root) {
  return {-(target.prob * target.log_prob),
          -(draft.prob * draft.log_prob),
          -(root.prob * root.log_prob),
          target.prob * (target.log_prob - draft.log_prob),
          draft.prob * (draft.log_prob - target.log_prob),
          fabs(target.prob - draft.prob)};
}
TREESPEC_HD LawFeatures sum_of(const LawFeatures& a, const LawFeatures& b) {
  return {a.target_entropy + b.target_entropy,   a.draft_entropy + b.draft_entropy,
          a.root_entropy + b.root_entropy,       a.target_to_draft + b.target_to_draft,
          a.draft_to_target + b.draft_to_target, a.distance + b.distance};
}

/// RootScalars; `tokens_before` >= 1.
TREESPEC_HD void write_root_scalars(const LawFeatures& laws, int64_t tokens_before,
                                    double temperature, double top_p, float* out) {
  out[0] = static_cast<float>(laws.target_entropy);
  out[1] = static_cast<float>(laws.draft_entropy);
  out[2] = static_cast<float>(laws.root_entropy);
  out[3] = static_cast<float>(laws.target_to_draft);
  out[4] = static_cast<float>(laws.draft_to_target);
  out[5] = static_cast<float>(laws.distance);
  out[6] = static_cast<float>(0.0 - log_unit(1.0 / static_cast<double>(tokens_before)));
  out[7] = static_cast<float>(temperature);
  out[8] = static_cast<float>(top_p);
}

}  // namespace treespec::shared
