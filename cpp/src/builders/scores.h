// SPDX-License-Identifier: Apache-2.0
// From draft log-probabilities to the scores that rank nodes. The sampling law is never touched: at
// temperature 0 a token is accepted when it is the target's best, and how often a token of draft
// probability q is that has to be measured, or guessed by sharpening (trees.md 0.2).
#pragma once

#include <string_view>
#include <vector>

#include "builders/options.h"
#include "shared/scores.hd.h"
#include "treespec/source.h"

namespace treespec {

/// Draft probabilities and measured acceptances, both in [0, 1], the first rising, the second not
/// falling.
using Calibration = std::vector<shared::CalibrationPoint>;

/// Reads `calibration`. Empty when not given.
Calibration read_calibration(std::string_view builder, OptionReader& reader);
/// Acceptance of a token of draft probability q in (0, 1].
inline double calibrated(const Calibration& calibration, double q) {
  return shared::calibrated(calibration.data(), static_cast<int32_t>(calibration.size()), q);
}

struct ScoreOptions {
  /// Scores are log_softmax(logprob / temperature) over the candidates.
  double temperature = 1.0;
  /// Applied after the temperature; empty: acceptance is the draft probability.
  Calibration calibration;

  bool plain() const { return temperature == 1.0 && calibration.empty(); }
};

/// Reads `score_temperature` and `calibration`.
ScoreOptions read_score_options(std::string_view builder, OptionReader& reader);

/// Rewrites rows; memory is kept from row to row.
class Scorer {
 public:
  explicit Scorer(ScoreOptions options) : options_(std::move(options)) {}

  /// The row with its scores; borrowed from this object until the next call when they changed.
  /// Equal scores may then stand in any order of tokens, so that the result is not `ranked`.
  CandidateRow scored(CandidateRow row);
  /// The same without most of the candidates that are neither among the `count` best, ties of the
  /// last one included, nor reach `least`: a table costs an exponential and a logarithm each, and a
  /// row of the vocabulary has few that matter.
  CandidateRow best_scored(CandidateRow row, int32_t count, float least);

 private:
  void sharpen(int32_t size, float top);
  void calibrate(int32_t size);
  float calibrated_score(float logprob) const;
  /// A log-probability below which every score is below `score`.
  float least_logprob(float score) const;

  ScoreOptions options_;
  std::vector<float> score_;
  std::vector<double> weight_;
  std::vector<int32_t> token_, state_;
};

}  // namespace treespec
