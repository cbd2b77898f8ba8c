// SPDX-License-Identifier: Apache-2.0
#include "treespec/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <queue>
#include <unordered_map>

#include "row_ops.h"
#include "shared/fixed_point.hd.h"
#include "shared/half.hd.h"
#include "treespec/error.h"

namespace treespec {
namespace {

/// Scores of one row in the arithmetic of its dtype.
template <class T>
void load_scores(const RowsView& logits, int64_t row, std::vector<T>& scores) {
  scores.resize(static_cast<size_t>(logits.width));
  const int64_t at = row * logits.row_stride;
  const auto convert = [&](const auto* data, auto to) {
    for (int64_t t = 0; t < logits.width; ++t) scores[t] = static_cast<T>(to(data[at + t]));
  };
  switch (logits.dtype) {
    case DType::kFloat32:
      return convert(static_cast<const float*>(logits.data), [](float x) { return x; });
    case DType::kFloat64:
      return convert(static_cast<const double*>(logits.data), [](double x) { return x; });
    case DType::kFloat16:
      return convert(static_cast<const uint16_t*>(logits.data), shared::float16_to_float);
    case DType::kBFloat16:
      return convert(static_cast<const uint16_t*>(logits.data), shared::bfloat16_to_float);
  }
}

template <class T>
class RowProcessor {
 public:
  RowProcessor(std::vector<T>& scores, const SamplingParams& params, int64_t row)
      : scores_(scores), params_(params), row_(row) {}

  void run(const History& history, ArrayView<const int32_t> path, const uint32_t* allowed,
           double* weights) {
    check_finite();
    for (const auto& [token, bias] : params_.logit_bias) {
      TREESPEC_CHECK(token >= 0 && token < size(),
                     "SamplingParams: logit_bias token must be in [0, ", size(), "), got ", token);
      scores_[token] += static_cast<T>(bias);
    }
    if (params_.has_penalties()) penalise(history, path);
    if (allowed != nullptr) mask(allowed);
    if (params_.temperature == 0.0) return one_hot(weights);
    if (params_.temperature != 1.0) {
      row::divide(scores_.data(), size(), static_cast<T>(params_.temperature));
    }
    if (params_.top_k > 0 && params_.top_k < size()) keep_top_k();
    const double top = row::exp_row(scores_.data(), size(), weights);
    TREESPEC_CHECK(std::isfinite(top), "process_logits: row ", row_,
                   " must allow at least one token, every logit is -inf");
    if (params_.top_p < 1.0) keep_top_p(weights);
    if (params_.min_p > 0.0) keep_min_p(weights);
  }

 private:
  static constexpr T kImpossible = -std::numeric_limits<T>::infinity();
  int64_t size() const { return static_cast<int64_t>(scores_.size()); }

  void check_finite() const {
    const bool sound = row::all_at_most(scores_.data(), size(), std::numeric_limits<T>::max());
    TREESPEC_CHECK(sound, "process_logits: row ", row_, " must not contain NaN or +inf");
  }

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
      if (token < 0 || token >= size()) continue;  // e.g. image placeholders beyond the head
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
    for (int64_t t = 0; t < size(); ++t) {
      if ((allowed[t / 32] >> (t % 32) & 1u) == 0) scores_[t] = kImpossible;
    }
  }

  void one_hot(double* weights) const {
    const int64_t best = row::argmax(scores_.data(), size());
    TREESPEC_CHECK(scores_[best] > kImpossible, "process_logits: row ", row_,
                   " must allow at least one token, every logit is -inf");
    std::fill_n(weights, size(), 0.0);
    weights[best] = 1.0;
  }

  /// Drops what is below the k-th largest value; its ties stay.
  void keep_top_k() {
    std::priority_queue<T, std::vector<T>, std::greater<T>> best;
    for (const T score : scores_) {
      if (static_cast<int32_t>(best.size()) < params_.top_k) {
        best.push(score);
      } else if (score > best.top()) {
        best.pop();
        best.push(score);
      }
    }
    const T least = best.top();
    for (T& score : scores_) {
      if (score < least) score = kImpossible;
    }
  }

  /// Keeps tokens, most likely first (ties by id), until the mass before a token reaches top_p.
  void keep_top_p(double* weights) const {
    const double mass = shared::from_raw_fixed(row::raw_fixed_sum(weights, size()));
    // Sort only the head of the row: lower the cut until the head holds enough mass.
    std::vector<int32_t> head;
    double cut = 1.0 / 64.0;
    int64_t held = 0;
    while (true) {
      head.clear();
      held = 0;
      for (int64_t t = 0; t < size(); ++t) {
        if (weights[t] <= 0.0 || weights[t] < cut) continue;
        head.push_back(static_cast<int32_t>(t));
        held += shared::to_raw_fixed(weights[t]);
      }
      if (shared::from_raw_fixed(static_cast<uint64_t>(held)) >= params_.top_p * mass ||
          cut == 0.0) {
        break;
      }
      cut = cut > 1e-12 ? cut / 64.0 : 0.0;
    }
    std::sort(head.begin(), head.end(), [&](int32_t a, int32_t b) {
      return weights[a] != weights[b] ? weights[a] > weights[b] : a < b;
    });
    std::vector<double> kept;
    int64_t before = 0;
    for (const int32_t t : head) {
      if (!kept.empty() &&
          shared::from_raw_fixed(static_cast<uint64_t>(before)) >= params_.top_p * mass) {
        break;
      }
      kept.push_back(weights[t]);
      before += shared::to_raw_fixed(weights[t]);
    }
    std::fill_n(weights, size(), 0.0);
    for (size_t i = 0; i < kept.size(); ++i) weights[head[i]] = kept[i];
  }

  void keep_min_p(double* weights) const {
    for (int64_t t = 0; t < size(); ++t) {
      if (weights[t] < params_.min_p) weights[t] = 0.0;  // the largest weight is 1
    }
  }

  std::vector<T>& scores_;
  const SamplingParams& params_;
  int64_t row_;
};

template <class T>
void process(const RowsView& logits, int64_t row, const SamplingParams& params,
             const History& history, ArrayView<const int32_t> path, const uint32_t* allowed,
             double* weights) {
  static thread_local std::vector<T> scores;  // kept: a vocabulary row is too large to map afresh
  load_scores(logits, row, scores);
  RowProcessor<T>(scores, params, row).run(history, path, allowed, weights);
}

}  // namespace

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
                    double* weights) {
  if (logits.dtype == DType::kFloat64) {
    process<double>(logits, row, params, history, path, allowed, weights);
  } else {
    process<float>(logits, row, params, history, path, allowed, weights);
  }
}

int32_t sample_at_position(ArrayView<const double> weights, uint64_t seed, uint32_t sequence_id,
                           uint32_t position) {
  const std::vector<int32_t> winner =
      row::race(weights.data(), nullptr, weights.size(), {seed, sequence_id, position},
                Purpose::kPosition, 0, 1);
  TREESPEC_CHECK(!winner.empty(), "sample_at_position: weights must have a positive entry");
  return winner.front();
}

uint64_t fixed_sum(ArrayView<const double> values) {
  return row::fixed_sum(values.data(), values.size());
}

int32_t inverse_cdf(ArrayView<const double> values, double u) {
  TREESPEC_CHECK(u >= 0.0 && u < 1.0, "inverse_cdf: u must be in [0, 1), got ", u);
  const uint64_t total = fixed_sum(values);
  TREESPEC_CHECK(total > 0, "inverse_cdf: values must have a positive sum");
  // floor(u * total) without rounding: u is a multiple of 2^-53 below 1.
  const auto wide =
      static_cast<unsigned __int128>(static_cast<uint64_t>(u * 18446744073709551616.0));
  const auto target = static_cast<uint64_t>((wide * total) >> 64);
  uint64_t cumulative = 0;
  for (int64_t t = 0; t < values.size(); ++t) {
    cumulative += static_cast<uint64_t>(shared::to_fixed(values[t]));
    if (cumulative > target) return static_cast<int32_t>(t);
  }
  return static_cast<int32_t>(values.size()) - 1;  // not reached: target < total
}

}  // namespace treespec
