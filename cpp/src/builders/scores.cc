// SPDX-License-Identifier: Apache-2.0
#include "builders/scores.h"

#include <limits>

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

void Scorer::calibrate(int32_t size) {
  for (int32_t k = 0; k < size; ++k) {
    const double logprob = score_[k] < 0.0f ? static_cast<double>(score_[k]) : 0.0;
    const double a = calibrated(options_.calibration, shared::exp_nonpositive(logprob));
    score_[k] = a >= std::numeric_limits<double>::min() ? static_cast<float>(shared::log_unit(a))
                                                        : kImpossible;
  }
}

}  // namespace treespec
