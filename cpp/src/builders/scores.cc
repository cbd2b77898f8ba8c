// SPDX-License-Identifier: Apache-2.0
#include "builders/scores.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "builders/row_law.h"
#include "row_ops.h"
#include "shared/fixed_point.hd.h"
#include "shared/ranking.hd.h"

namespace treespec {
namespace {

constexpr float kImpossible = -std::numeric_limits<float>::infinity();

}  // namespace

Calibration read_calibration(std::string_view builder, OptionReader& reader) {
  Calibration calibration;
  shared::CalibrationPoint before{0.0, 0.0};
  for (const auto& row : reader.table("calibration", 0.0, 1.0)) {
    TREESPEC_CHECK(row.size() == 2 && row[0] > before.probability && row[1] >= before.acceptance,
                   builder,
                   ": calibration must be pairs (probability, acceptance), the first rising, the "
                   "second not falling, got a row that starts with ",
                   row[0], " after ", before.probability, ", ", before.acceptance);
    before = {row[0], row[1]};
    calibration.push_back(before);
  }
  return calibration;
}

ScoreOptions read_score_options(std::string_view builder, OptionReader& reader) {
  ScoreOptions options;
  options.temperature = reader.number("score_temperature", 1.0, 1e-6, false, 1e6);
  options.calibration = read_calibration(builder, reader);
  return options;
}

CandidateRow Scorer::scored(CandidateRow row) {
  if (options_.plain() || row.size == 0) return row;
  const float top = row::max(row.logprob, row.size);
  if (top == kImpossible) return row;
  score_.assign(row.logprob, row.logprob + row.size);
  weight_.resize(static_cast<size_t>(row.size));
  if (options_.temperature != 1.0) sharpen(row.size, top);
  if (!options_.calibration.empty()) calibrate(row.size);
  row.logprob = score_.data();
  row.ranked = false;
  return row;
}

void Scorer::sharpen(int32_t size, float top) {
  const double inverse = 1.0 / options_.temperature;
  for (int32_t k = 0; k < size; ++k) score_[k] = shared::tempered(score_[k], top, inverse);
  row::exp_row(score_.data(), size, weight_.data());
  const double mass = shared::from_raw_fixed(row::raw_fixed_sum(weight_.data(), size));
  const double log_normaliser = shared::log_mass(mass);
  for (int32_t k = 0; k < size; ++k) {
    score_[k] = static_cast<float>(static_cast<double>(score_[k]) - log_normaliser);
  }
}

CandidateRow Scorer::best_scored(CandidateRow row, int32_t count, float least) {
  if (options_.calibration.empty() || options_.temperature != 1.0) return scored(row);
  if (least == kImpossible && count < row.size) {
    const std::vector<int32_t> best = most_likely(row, count);
    // Scores rise with log-probabilities, so that these have the best scores, too.
    if (static_cast<int32_t>(best.size()) == count && count > 0) {
      least = calibrated_score(row.logprob[best.back()]);
    }
  }
  const float cutoff = least_logprob(least);
  token_.clear(), state_.clear(), score_.clear();
  const auto hopeful = [cutoff](float value) { return value >= cutoff && value != kImpossible; };
  row::scan(row.logprob, row.size, hopeful, [&](int64_t k) {
    if (!hopeful(row.logprob[k])) return;
    token_.push_back(row.token_of(static_cast<int32_t>(k)));
    state_.push_back(row.state != nullptr ? row.state[k] : 0);
    score_.push_back(calibrated_score(row.logprob[k]));
  });
  return {token_.data(), score_.data(), state_.data(), static_cast<int32_t>(token_.size()), false};
}

void Scorer::calibrate(int32_t size) {
  for (int32_t k = 0; k < size; ++k) score_[k] = calibrated_score(score_[k]);
}

float Scorer::calibrated_score(float logprob) const {
  const Calibration& points = options_.calibration;
  return shared::calibrated_score(points.data(), static_cast<int32_t>(points.size()), logprob);
}

float Scorer::least_logprob(float score) const {
  // Rounding may not lose a candidate: sums of scores are float32.
  constexpr double kMargin = 1e-4;
  if (score == kImpossible) return kImpossible;
  const double wanted = std::exp(static_cast<double>(score) - kMargin);
  double q0 = 0.0, a0 = 0.0;
  for (const auto& [q1, a1] : options_.calibration) {
    if (a1 >= wanted) {
      const double q = q0 + (q1 - q0) * ((wanted - a0) / (a1 - a0));
      return static_cast<float>(std::log(q) - kMargin);
    }
    q0 = q1, a0 = a1;
  }
  return static_cast<float>(std::log(q0) - kMargin);
}

}  // namespace treespec
