// SPDX-License-Identifier: Apache-2.0
// Sums of the counters.
#include "treespec/stats.h"

#include <numeric>

namespace treespec {
namespace {

void add(std::vector<int64_t>& sum, const std::vector<int64_t>& counts) {
  if (sum.size() < counts.size()) sum.resize(counts.size(), 0);
  for (size_t i = 0; i < counts.size(); ++i) sum[i] += counts[i];
}

}  // namespace

std::string_view step_name(Step step) {
  constexpr std::string_view kNames[kNumSteps] = {"draft",  "build",  "mask",
                                                  "target", "verify", "commit"};
  return kNames[static_cast<int>(step)];
}

int64_t Stats::accepted_nodes() const {
  return std::accumulate(accepted_by_depth.begin(), accepted_by_depth.end(), int64_t{0});
}

double Stats::round_seconds() const { return std::accumulate(seconds.begin(), seconds.end(), 0.0); }

double Stats::tokens_per_second() const {
  const double time = round_seconds();
  return time > 0.0 ? static_cast<double>(emitted_tokens) / time : 0.0;
}

Stats& Stats::operator+=(const Stats& other) {
  rounds += other.rounds;
  emitted_tokens += other.emitted_tokens;
  drafted_nodes += other.drafted_nodes;
  predicted_accepted += other.predicted_accepted;
  add(accepted_by_depth, other.accepted_by_depth);
  add(accepted_by_rank, other.accepted_by_rank);
  prefill_seconds += other.prefill_seconds;
  for (int i = 0; i < kNumSteps; ++i) seconds[i] += other.seconds[i];
  return *this;
}

}  // namespace treespec
