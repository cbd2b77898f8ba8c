// SPDX-License-Identifier: Apache-2.0
#include "builders/row_law.h"

#include <algorithm>
#include <cmath>

#include "row_ops.h"
#include "shared/fixed_point.hd.h"
#include "treespec/sampling.h"

namespace treespec {

void RowLaw::read(const CandidateRow& row) {
  entry_.clear();
  for (int32_t k = 0; k < row.size; ++k) {
    if (!std::isinf(row.logprob[k])) entry_.push_back(k);
  }
  if (row.token != nullptr) {
    std::sort(entry_.begin(), entry_.end(),
              [&](int32_t a, int32_t b) { return row.token[a] < row.token[b]; });
  }
  const size_t n = entry_.size();
  token_.resize(n);
  logprob_.resize(n);
  prob_.resize(n);
  for (size_t k = 0; k < n; ++k) {
    token_[k] = row.token_of(entry_[k]);
    logprob_[k] = row.logprob[entry_[k]];
  }
  vocab_size_ = row.token == nullptr ? row.size : n == 0 ? 0 : token_.back() + 1;
  row::exp_row(logprob_.data(), size(), prob_.data());
  const double mass = shared::from_raw_fixed(row::raw_fixed_sum(prob_.data(), size()));
  for (double& p : prob_) p = static_cast<float>(p / mass);
}

std::vector<int32_t> RowLaw::race(const std::vector<double>& weights, const RoundKey& key,
                                  uint32_t slot, int32_t count) const {
  return row::race(weights.data(), token_.data(), size(), key, Purpose::kDraft, slot, count);
}

int32_t RowLaw::draw(const RoundKey& key, uint32_t slot, int32_t j) const {
  return inverse_cdf(prob_, uniform(key, Purpose::kDraft, slot, static_cast<uint32_t>(j)));
}

std::vector<int32_t> most_likely(const CandidateRow& row, int32_t count) {
  const auto better = [&](int32_t a, int32_t b) {
    if (row.logprob[a] != row.logprob[b]) return row.logprob[a] > row.logprob[b];
    return row.token_of(a) < row.token_of(b);
  };
  std::vector<int32_t> best;  // ascending in `better`
  for (int32_t k = 0; k < row.size; ++k) {
    if (std::isinf(row.logprob[k])) continue;
    if (static_cast<int32_t>(best.size()) == count) {
      if (count == 0 || !better(k, best.back())) continue;
      best.pop_back();
    }
    best.insert(std::upper_bound(best.begin(), best.end(), k, better), k);
  }
  return best;
}

}  // namespace treespec
