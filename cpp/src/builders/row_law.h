// SPDX-License-Identifier: Apache-2.0
// The law of one candidate row, ready to be drawn from.
#pragma once

#include <cstdint>
#include <vector>

#include "treespec/rng.h"
#include "treespec/source.h"

namespace treespec {

/// Normalised probabilities of a row by ascending token, rounded to the float32 numbers that the
/// tree records: a verifier must divide by the very numbers that were drawn from.
class RowLaw {
 public:
  /// Reads a row; memory is kept for the next one.
  void read(const CandidateRow& row);

  bool empty() const { return entry_.empty(); }
  int32_t size() const { return static_cast<int32_t>(entry_.size()); }
  /// Place of the k-th entry in the row that was read.
  int32_t entry(int32_t k) const { return entry_[k]; }
  const std::vector<int32_t>& tokens() const { return token_; }
  /// float32 numbers held in double.
  const std::vector<double>& probs() const { return prob_; }
  /// Size of the vocabulary as far as the row shows it.
  int32_t vocab_size() const { return vocab_size_; }

  /// Entries in the order of draws without replacement, at most `count`: an exponential race of
  /// purpose kDraft at `slot`, one uniform per token. `weights` may be these probs with some
  /// zeroed.
  std::vector<int32_t> race(const std::vector<double>& weights, const RoundKey& key, uint32_t slot,
                            int32_t count) const;
  /// The j-th of independent draws: one uniform of purpose kDraft at `slot`, draw index j.
  int32_t draw(const RoundKey& key, uint32_t slot, int32_t j) const;

 private:
  std::vector<int32_t> entry_, token_;
  std::vector<float> logprob_;
  std::vector<double> prob_;
  int32_t vocab_size_ = 0;
};

/// Entries of the `count` likeliest candidates of a row: logprob down, token up; no impossible
/// ones.
std::vector<int32_t> most_likely(const CandidateRow& row, int32_t count);

}  // namespace treespec
