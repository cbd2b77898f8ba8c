// SPDX-License-Identifier: Apache-2.0
// Sampling parameters and target rows: what "the target's distribution" means at a node.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "treespec/array_view.h"
#include "treespec/target_row.h"

namespace treespec {

/// How a row of logits becomes a law. Order, as in Hugging Face: logit_bias, repetition penalty,
/// presence and frequency penalty, allowed tokens, temperature, top-k, top-p, min-p.
struct SamplingParams {
  double temperature = 1.0;         ///< >= 0; 0 is greedy
  int32_t top_k = 0;                ///< keep the k largest and all ties of the k-th; 0: off
  double top_p = 1.0;               ///< in (0, 1]; smallest set of mass >= top_p; ties by token id
  double min_p = 0.0;               ///< in [0, 1); keep p >= min_p * max p
  double repetition_penalty = 1.0;  ///< > 0; over prompt + output + path
  double presence_penalty = 0.0;    ///< over output + path, once per distinct token
  double frequency_penalty = 0.0;   ///< over output + path, times the count
  std::vector<std::pair<int32_t, double>> logit_bias;

  /// Whether the scores of single tokens change.
  bool changes_scores() const { return has_penalties() || !logit_bias.empty(); }
  bool has_penalties() const {
    return repetition_penalty != 1.0 || presence_penalty != 0.0 || frequency_penalty != 0.0;
  }
};

/// Throws InvalidArgument naming the parameter, the rule and the value.
void check_sampling(const SamplingParams& params);

/// The same for a token of `logit_bias`.
void check_biased_token(int32_t token, int64_t vocab_size);

/// The committed text that penalties look at: prompt + output, the root included as its last token.
struct History {
  ArrayView<const int32_t> token_ids;
  int64_t prompt_length = 0;  ///< tokens of `token_ids` that are prompt
};

/// Processes one row of logits, `[V]` of any dtype, into a law. Arithmetic on scores is float32 for
/// float32 and narrower logits (so that kept sets equal Hugging Face's), float64 for float64.
/// `path`: tokens drafted after the history, root excluded. `allowed`: bitmask of ceil(V / 32)
/// words or null. Temperature 0 gives weight 1 to the arg-max (lowest id among ties), 0 to the
/// rest. `without`: see TargetRow. Throws InvalidArgument on NaN, +inf, or an empty support.
void process_logits(const RowsView& logits, int64_t row, const SamplingParams& params,
                    const History& history, ArrayView<const int32_t> path, const uint32_t* allowed,
                    ArrayView<const int32_t> without, TargetRow& out);

/// The likeliest token of the processed row, lowest id among equals; errors as above.
int32_t argmax_logits(const RowsView& logits, int64_t row, const SamplingParams& params,
                      const History& history, ArrayView<const int32_t> path,
                      const uint32_t* allowed);

/// Order-free mass of a row: sum of floor(value * 2^60); equal for every summation order and
/// device.
uint64_t fixed_sum(ArrayView<const double> values);

/// Smallest token whose cumulative fixed-point weight exceeds u * total, u in [0, 1) with 53 bits.
int32_t inverse_cdf(ArrayView<const double> values, double u);

}  // namespace treespec
