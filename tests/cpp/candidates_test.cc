// SPDX-License-Identifier: Apache-2.0
// log_probs and rank_candidates say the same of a row of logits, as softmax does.
#include "treespec/candidates.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "treespec/array_view.h"
#include "treespec/error.h"

namespace {

using namespace treespec;  // NOLINT

constexpr float kImpossible = -std::numeric_limits<float>::infinity();

std::vector<float> random_logits(int64_t size) {
  std::mt19937 generator(5);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  std::vector<float> logits(static_cast<size_t>(size));
  for (float& logit : logits) logit = normal(generator);
  return logits;
}

void log_probs_are_those_of_the_whole_ranked_list() {
  constexpr int32_t kRows = 3, kVocab = 5000;  // more than a block
  std::vector<float> logits = random_logits(kRows * kVocab);
  logits[7] = logits[kVocab + 4099] = kImpossible;
  const RowsView rows{logits.data(), DType::kFloat32, kRows, kVocab, kVocab};
  for (const double temperature : {1.0, 0.3}) {
    std::vector<int32_t> token(logits.size());
    std::vector<float> ranked(logits.size()), whole(logits.size());
    rank_candidates(rows, kVocab, temperature, token.data(), ranked.data());
    log_probs(rows, temperature, whole.data());
    for (size_t i = 0; i < ranked.size(); ++i) {
      if (ranked[i] == kImpossible) continue;  // padding
      CHECK_EQUAL(whole[i / kVocab * kVocab + static_cast<size_t>(token[i])], ranked[i]);
    }
    CHECK_EQUAL(whole[7], kImpossible);
    double mass = 0.0;
    for (size_t t = 0; t < kVocab; ++t) mass += std::exp(static_cast<double>(whole[t]));
    CHECK(std::abs(mass - 1.0) < 1e-5);
  }
}

void log_probs_reads_a_part_of_every_row() {
  const std::vector<float> logits = random_logits(2 * 10);
  std::vector<float> cut(2 * 6), expected(2 * 6), packed;
  for (size_t row = 0; row < 2; ++row) {
    packed.insert(packed.end(), logits.begin() + row * 10, logits.begin() + row * 10 + 6);
  }
  log_probs({logits.data(), DType::kFloat32, 2, 6, 10}, 1.0, cut.data());
  log_probs({packed.data(), DType::kFloat32, 2, 6, 6}, 1.0, expected.data());
  CHECK(cut == expected);
}

void log_probs_refuses_what_is_no_law() {
  float out[2];
  const float nan[] = {0.0f, std::nanf("")}, none[] = {kImpossible, kImpossible}, good[] = {0, 1};
  const auto rows = [](const float* data) { return RowsView{data, DType::kFloat32, 1, 2, 2}; };
  CHECK_THROWS(InvalidArgument, log_probs(rows(nan), 1.0, out));
  CHECK_THROWS(InvalidArgument, log_probs(rows(none), 1.0, out));
  CHECK_THROWS(InvalidArgument, log_probs(rows(good), 0.0, out));
}

}  // namespace

int main() {
  log_probs_are_those_of_the_whole_ranked_list();
  log_probs_reads_a_part_of_every_row();
  log_probs_refuses_what_is_no_law();
  return 0;
}
