// SPDX-License-Identifier: Apache-2.0
// The law of one candidate row, ready to be drawn from.
#pragma once

#include <cstdint>
#include <vector>

#include "treespec/rng.h"
#include "treespec/source.h"
#include "treespec/token_tree.h"

namespace treespec {

/// Normalised probabilities of a row by ascending token, rounded to the float32 numbers that the
/// tree records: a verifier must divide by the very numbers that were drawn from.
class RowLaw {
 public:
  /// Reads a row; memory is kept for the next one.
  void read(const CandidateRow& row);

  /// Whether there is nothing to draw.
  bool empty() const { return prob_.empty(); }
  int64_t size() const { return static_cast<int64_t>(prob_.size()); }
  /// float32 numbers held in double, by ascending token; some may be 0.
  const std::vector<double>& probs() const { return prob_; }
  int32_t token(int32_t k) const { return dense_ ? k : token_[k]; }
  /// Place in probs() of a possible token.
  int32_t place_of(int32_t token) const;
  /// Place of the k-th probability in the row that was read.
  int32_t entry(int32_t k) const { return dense_ ? k : entry_[k]; }

  /// The first `count` draws without replacement, as places in probs(): an exponential race of
  /// purpose kDraft at `slot`, one uniform per token. `weights`: probs(), some of them zeroed.
  std::vector<int32_t> race(const std::vector<double>& weights, const RoundKey& key, uint32_t slot,
                            int32_t count) const;
  /// The j-th of independent draws: one uniform of purpose kDraft at `slot`, draw index j.
  int32_t draw(const RoundKey& key, uint32_t slot, int32_t j) const;

  /// Appends the positive entries as a row of a tree's laws.
  void append_to(DraftRows& rows) const;

 private:
  bool dense_ = false;  // entry k is token k, and place k of the row
  std::vector<int32_t> entry_, token_;
  std::vector<float> logprob_;
  std::vector<double> prob_;
  int32_t vocab_size_ = 0;
};

/// Entries of the `count` likeliest candidates of a row: logprob down, token up; no impossible
/// ones.
std::vector<int32_t> most_likely(const CandidateRow& row, int32_t count);

}  // namespace treespec
