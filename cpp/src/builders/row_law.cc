// SPDX-License-Identifier: Apache-2.0
#include "builders/row_law.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "row_ops.h"
#include "shared/fixed_point.hd.h"
#include "shared/simd.h"
#include "treespec/sampling.h"

namespace treespec {
namespace {

/// Makes room at the end. Rows are as long as the vocabulary, so that moving them costs far more
/// than memory that is never touched.
template <class T>
void make_room(std::vector<T>& values, size_t size) {
  constexpr size_t kGrowth = 4, kFirstRows = 16;
  if (values.capacity() - values.size() >= size) return;
  values.reserve(std::max(kGrowth * values.size(), values.size() + kFirstRows * size));
}

TREESPEC_SIMD int64_t count_positive(const double* values, int64_t size) {
  int64_t count = 0;
  for (int64_t t = 0; t < size; ++t) count += values[t] > 0.0;
  return count;
}

}  // namespace

void RowLaw::read(const CandidateRow& row) {
  dense_ = row.token == nullptr;
  const float* logprob = row.logprob;
  int64_t size = row.size;
  if (!dense_) {
    entry_.clear();
    for (int32_t k = 0; k < row.size; ++k) {
      if (!std::isinf(row.logprob[k])) entry_.push_back(k);
    }
    std::sort(entry_.begin(), entry_.end(),
              [&](int32_t a, int32_t b) { return row.token[a] < row.token[b]; });
    token_.clear();
    logprob_.clear();
    for (const int32_t k : entry_) {
      token_.push_back(row.token[k]);
      logprob_.push_back(row.logprob[k]);
    }
    logprob = logprob_.data();
    size = static_cast<int64_t>(entry_.size());
  }
  prob_.resize(static_cast<size_t>(size));  // overwritten: not cleared first
  if (std::isinf(row::exp_row(logprob, size, prob_.data()))) return prob_.clear();
  vocab_size_ = dense_ ? row.size : token_.back() + 1;
  row::normalise(prob_.data(), size,
                 shared::from_raw_fixed(row::raw_fixed_sum(prob_.data(), size)));
}

int32_t RowLaw::place_of(int32_t token) const {
  if (dense_) return token;
  return static_cast<int32_t>(std::lower_bound(token_.begin(), token_.end(), token) -
                              token_.begin());
}

std::vector<int32_t> RowLaw::race(const std::vector<double>& weights, const RoundKey& key,
                                  uint32_t slot, int32_t count) const {
  return row::race({weights.data(), size(), dense_ ? nullptr : token_.data(), 0}, key,
                   Purpose::kDraft, slot, count);
}

int32_t RowLaw::draw(const RoundKey& key, uint32_t slot, int32_t j) const {
  return inverse_cdf(prob_, uniform(key, Purpose::kDraft, slot, static_cast<uint32_t>(j)));
}

void RowLaw::append_to(DraftRows& rows) const {
  if (rows.row_offset.empty()) rows.row_offset.push_back(0);
  rows.vocab_size = std::max(rows.vocab_size, vocab_size_);
  const auto count = static_cast<size_t>(count_positive(prob_.data(), size()));
  make_room(rows.token, count + 1);
  make_room(rows.prob, count + 1);
  size_t end = rows.prob.size();
  if (dense_ && count == prob_.size()) {
    rows.prob.insert(rows.prob.end(), prob_.begin(), prob_.end());
    rows.token.resize(end + count);
    std::iota(rows.token.begin() + static_cast<std::ptrdiff_t>(end), rows.token.end(), 0);
    end += count;
  } else {
    rows.token.resize(end + count + 1);
    rows.prob.resize(end + count + 1);
    for (size_t k = 0; k < prob_.size(); ++k) {
      rows.token[end] = token(static_cast<int32_t>(k));  // kept when it counts
      rows.prob[end] = static_cast<float>(prob_[k]);
      end += prob_[k] > 0.0;
    }
    rows.token.resize(end);
    rows.prob.resize(end);
  }
  rows.row_offset.push_back(static_cast<int64_t>(end));
}

std::vector<int32_t> most_likely(const CandidateRow& row, int32_t count) {
  const auto better = [&](int32_t a, int32_t b) {
    if (row.logprob[a] != row.logprob[b]) return row.logprob[a] > row.logprob[b];
    return row.token_of(a) < row.token_of(b);
  };
  std::vector<int32_t> best;  // a heap with the worst in front
  float worst = -std::numeric_limits<float>::infinity();
  const auto hopeful = [&](float value) { return value >= worst && !std::isinf(value); };
  const auto visit = [&](int64_t place) {
    const auto k = static_cast<int32_t>(place);
    if (!hopeful(row.logprob[k])) return;
    if (static_cast<int32_t>(best.size()) == count) {
      if (!better(k, best.front())) return;
      std::pop_heap(best.begin(), best.end(), better);
      best.pop_back();
    }
    best.push_back(k);
    std::push_heap(best.begin(), best.end(), better);
    if (static_cast<int32_t>(best.size()) == count) worst = row.logprob[best.front()];
  };
  if (count > 0) row::scan(row.logprob, row.size, hopeful, visit);
  std::sort_heap(best.begin(), best.end(), better);
  return best;
}

}  // namespace treespec
