// SPDX-License-Identifier: Apache-2.0
#include "builders/scores.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "builders/row_law.h"
#include "row_ops.h"
#include "shared/fixed_point.hd.h"
#include "shared/math.hd.h"

namespace treespec {
namespace {

constexpr float kImpossible = -std::numeric_limits<float>::infinity();

}  // namespace

OptionTable read_calibration(std::string_view builder, OptionReader& reader) {
  OptionTable table = reader.table("calibration", 0.0, 1.0);
  double q = 0.0, a = 0.0;
  for (const auto& point : table) {
    TREESPEC_CHECK(point.size() == 2 && point[0] > q && point[1] >= a, builder,
                   ": calibration must be pairs (probability, acceptance), the first rising, the "
                   "second not falling, got a row that starts with ",
                   point[0], " after ", q, ", ", a);
    q = point[0];
    a = point[1];
  }
  return table;
}

double calibrated(const OptionTable& calibration, double q) {
  double q0 = 0.0, a0 = 0.0;
  for (const auto& point : calibration) {
    if (q <= point[0]) return a0 + (point[1] - a0) * ((q - q0) / (point[0] - q0));
    q0 = point[0];
    a0 = point[1];
  }
  return a0;
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
  for (int32_t k = 0; k < size; ++k) {
    // Relative to the top first: no temperature, however small, can lose the likeliest token.
    const double relative = static_cast<double>(score_[k]) - static_cast<double>(top);
    score_[k] = static_cast<float>(relative * inverse);
  }
  row::exp_row(score_.data(), size, weight_.data());
  const double mass = shared::from_raw_fixed(row::raw_fixed_sum(weight_.data(), size));
  // mass may exceed 1, so ln(mass) = -ln(1 / mass)
  const double log_normaliser = -shared::log_unit(1.0 / mass);
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
  const double q = shared::exp_nonpositive(std::min(static_cast<double>(logprob), 0.0));
  const double a = calibrated(options_.calibration, q);
  return a >= std::numeric_limits<double>::min() ? static_cast<float>(shared::log_unit(a))
                                                 : kImpossible;
}

float Scorer::least_logprob(float score) const {
  // Rounding may not lose a candidate: sums of scores are float32.
  constexpr double kMargin = 1e-4;
  if (score == kImpossible) return kImpossible;
  const double wanted = std::exp(static_cast<double>(score) - kMargin);
  double q0 = 0.0, a0 = 0.0;
  for (const auto& point : options_.calibration) {
    if (point[1] >= wanted) {
      const double q = q0 + (point[0] - q0) * ((wanted - a0) / (point[1] - a0));
      return static_cast<float>(std::log(q) - kMargin);
    }
    q0 = point[0], a0 = point[1];
  }
  return static_cast<float>(std::log(q0) - kMargin);
}

}  // namespace treespec
