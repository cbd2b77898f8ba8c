// SPDX-License-Identifier: Apache-2.0
#include "treespec/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>

#include "row_ops.h"
#include "shared/block_sum.hd.h"
#include "shared/fixed_point.hd.h"
#include "treespec/error.h"

namespace treespec {
namespace {

template <class T>
constexpr T kImpossible = -std::numeric_limits<T>::infinity();

/// Changes the scores of single tokens, in the arithmetic of the row's dtype.
template <class T>
class ScoreChanges {
 public:
  ScoreChanges(T* scores, int64_t size, const SamplingParams& params)
      : scores_(scores), size_(size), params_(params) {}

  void run(const History& history, ArrayView<const int32_t> path, const uint32_t* allowed) {
    for (const auto& [token, bias] : params_.logit_bias) {
      check_biased_token(token, size_);
      scores_[token] += static_cast<T>(bias);
    }
    if (params_.has_penalties()) penalise(history, path);
    if (allowed != nullptr) mask(allowed);
  }

 private:
  /// Repetition penalty: once per token seen anywhere. Presence, frequency: tokens after the
  /// prompt.
  void penalise(const History& history, ArrayView<const int32_t> path) {
    struct Seen {
      int32_t generated = 0;
    };
    std::unordered_map<int32_t, Seen> seen;
    for (int64_t i = 0; i < history.token_ids.size(); ++i) {
      seen[history.token_ids[i]].generated += i >= history.prompt_length;
    }
    for (const int32_t token : path) ++seen[token].generated;
    const T repetition = static_cast<T>(params_.repetition_penalty);
    for (const auto& [token, count] : seen) {
      if (token < 0 || token >= size_) continue;  // e.g. image placeholders beyond the head
      T& score = scores_[token];
      if (params_.repetition_penalty != 1.0) {
        score = score < T{0} ? score * repetition : score / repetition;
      }
      if (count.generated > 0) {
        score -= static_cast<T>(params_.presence_penalty);
        score -= static_cast<T>(params_.frequency_penalty) * static_cast<T>(count.generated);
      }
    }
  }

  void mask(const uint32_t* allowed) {
    for (int64_t t = 0; t < size_; ++t) {
      if ((allowed[t / 32] >> (t % 32) & 1u) == 0) scores_[t] = kImpossible<T>;
    }
  }

  T* scores_;
  int64_t size_;
  const SamplingParams& params_;
};

/// The scores of a row: the model's own, or a changed copy in `own`, which stands for every row.
RowsView changed_scores(const RowsView& logits, int64_t row, const SamplingParams& params,
                        const History& history, ArrayView<const int32_t> path,
                        const uint32_t* allowed, TargetRow& own) {
  if (!params.changes_scores() && allowed == nullptr) return logits;
  const int64_t size = logits.width;
  const int64_t first = row * logits.row_stride;
  if (logits.dtype == DType::kFloat64) {
    double* scores = own.own_scores(size, double{});
    std::copy_n(static_cast<const double*>(logits.data) + first, size, scores);
    ScoreChanges<double>(scores, size, params).run(history, path, allowed);
    return {scores, DType::kFloat64, logits.num_rows, size, 0};
  }
  float* scores = own.own_scores(size, float{});
  row::to_float(logits.data, logits.dtype, first, size, scores);
  ScoreChanges<float>(scores, size, params).run(history, path, allowed);
  return {scores, DType::kFloat32, logits.num_rows, size, 0};
}

/// Id of the largest score, lowest among ties.
template <class T, class Read>
int32_t largest(int64_t size, int64_t row, Read&& read) {
  T lane_max[row::kMaxLanes];
  T best = kImpossible<T>;
  int64_t at = -1;
  for (int64_t begin = 0; begin < size; begin += shared::kBlock) {
    const int64_t count = std::min(shared::kBlock, size - begin);
    const T* block = read(begin, count);
    const T top = row::lane_maxima(block, count, lane_max);
    TREESPEC_CHECK(top < std::numeric_limits<T>::infinity(), "target_logits: row ", row,
                   " must not contain NaN or +inf");
    if (top <= best) continue;
    best = top;
    at = begin + (std::find(block, block + count, top) - block);
  }
  TREESPEC_CHECK(at >= 0, "target_logits: row ", row,
                 " must allow at least one token, every logit is -inf");
  return static_cast<int32_t>(at);
}

int32_t largest_of(const RowsView& scores, int64_t row) {
  const int64_t size = scores.width;
  if (scores.dtype == DType::kFloat64) {
    const double* data = static_cast<const double*>(scores.data) + row * scores.row_stride;
    return largest<double>(size, row, [&](int64_t begin, int64_t) { return data + begin; });
  }
  row::BlockReader reader(scores, row);
  return largest<float>(size, row,
                        [&](int64_t begin, int64_t count) { return reader.read(begin, count); });
}

}  // namespace

void check_biased_token(int32_t token, int64_t vocab_size) {
  TREESPEC_CHECK(token >= 0 && token < vocab_size,
                 "SamplingParams: logit_bias token must be in [0, ", vocab_size, "), got ", token);
}

void check_sampling(const SamplingParams& params) {
  const auto rule = [](bool sound, const char* name, const char* range, auto value) {
    TREESPEC_CHECK(sound, "SamplingParams: ", name, " must be ", range, ", got ", value);
  };
  // Below the limit a division of float32 logits could overflow.
  rule(params.temperature == 0.0 ||
           (params.temperature >= 1e-6 && std::isfinite(params.temperature)),
       "temperature", "0 (greedy) or finite and >= 1e-6", params.temperature);
  rule(params.top_k >= 0, "top_k", ">= 0 (0 is off)", params.top_k);
  rule(params.top_p > 0.0 && params.top_p <= 1.0, "top_p", "in (0, 1]", params.top_p);
  rule(params.min_p >= 0.0 && params.min_p < 1.0, "min_p", "in [0, 1)", params.min_p);
  rule(params.repetition_penalty > 0.0 && std::isfinite(params.repetition_penalty),
       "repetition_penalty", "finite and > 0", params.repetition_penalty);
  rule(std::isfinite(params.presence_penalty), "presence_penalty", "finite",
       params.presence_penalty);
  rule(std::isfinite(params.frequency_penalty), "frequency_penalty", "finite",
       params.frequency_penalty);
  for (const auto& [token, bias] : params.logit_bias) {
    rule(token >= 0, "logit_bias token", ">= 0", token);
    rule(!std::isnan(bias) && bias < std::numeric_limits<double>::infinity(), "logit_bias",
         "a number below +inf", bias);
  }
}

void process_logits(const RowsView& logits, int64_t row, const SamplingParams& params,
                    const History& history, ArrayView<const int32_t> path, const uint32_t* allowed,
                    ArrayView<const int32_t> without, TargetRow& out) {
  const RowsView scores = changed_scores(logits, row, params, history, path, allowed, out);
  if (params.temperature == 0.0) {
    return out.load_one_hot(largest_of(scores, row), static_cast<int32_t>(logits.width), without);
  }
  out.load_logits(scores, row, {params.temperature, params.top_k, params.top_p, params.min_p},
                  without);
}

int32_t argmax_logits(const RowsView& logits, int64_t row, const SamplingParams& params,
                      const History& history, ArrayView<const int32_t> path,
                      const uint32_t* allowed) {
  if (!params.changes_scores() && allowed == nullptr) return largest_of(logits, row);
  static thread_local TargetRow own;  // kept: a vocabulary row is too large to map afresh
  return largest_of(changed_scores(logits, row, params, history, path, allowed, own), row);
}

uint64_t fixed_sum(ArrayView<const double> values) {
  return row::fixed_sum(values.data(), values.size());
}

int32_t inverse_cdf(ArrayView<const double> values, double u) {
  TREESPEC_CHECK(u >= 0.0 && u < 1.0, "inverse_cdf: u must be in [0, 1), got ", u);
  const uint64_t total = fixed_sum(values);
  TREESPEC_CHECK(total > 0, "inverse_cdf: values must have a positive sum");
  const uint64_t target = shared::share_of(u, total);
  uint64_t cumulative = 0;
  for (int64_t t = 0; t < values.size(); ++t) {
    cumulative += static_cast<uint64_t>(shared::to_fixed(values[t]));
    if (cumulative > target) return static_cast<int32_t>(t);
  }
  return static_cast<int32_t>(values.size()) - 1;  // not reached: target < total
}

}  // namespace treespec
