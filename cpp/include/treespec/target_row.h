// SPDX-License-Identifier: Apache-2.0
// TargetRow: the target's law after one node, summed block by block and looked up where needed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "treespec/array_view.h"

namespace treespec {

/// Which tokens of a row stay, after temperature; see SamplingParams.
struct Truncation {
  double temperature = 1.0;  ///< > 0
  int32_t top_k = 0;
  double top_p = 1.0;
  double min_p = 0.0;
};

/// A law over `vocab_size` tokens as unnormalised weights. Loading reads the row once, in its own
/// dtype, and keeps sums over blocks of 4096 tokens; a single weight, or those of one block, are
/// computed again when asked for. Weights of float32 and narrower logits are exponentials in
/// float32, those of float64 logits in float64, relative to the likeliest token (weight 1). Borrows
/// what it was loaded from. Equal bits on every machine; the partition of the sums is that of
/// shared/block_sum.hd.h.
class TargetRow {
 public:
  /// Row `row` of `scores`, weights exp((score - max) / temperature), what truncation drops being
  /// 0. `without`: tokens, ascending, to be left out of the block sums, because the caller accounts
  /// for them. Throws InvalidArgument on NaN, +inf, and when no score is above -inf.
  void load_logits(const RowsView& scores, int64_t row, const Truncation& truncation,
                   ArrayView<const int32_t> without = {});
  /// A row of probabilities or other weights, float32 or float64, finite and not negative.
  void load_weights(const RowsView& weights, int64_t row, ArrayView<const int32_t> without = {});
  /// Weight 1 for `token`, 0 for the rest.
  void load_one_hot(int32_t token, int32_t vocab_size, ArrayView<const int32_t> without = {});

  int32_t vocab_size() const { return static_cast<int32_t>(source_.width); }
  int64_t num_blocks() const { return static_cast<int64_t>(block_.size()); }
  /// Weights of the tokens given as `without`, in their order.
  ArrayView<const double> without_weight() const { return without_weight_; }
  /// Mass of a block, and of all, without those tokens. Blocks add in ascending order.
  double block_mass(int64_t block) const { return block_[block].scale * block_[block].sum; }
  double mass() const;
  /// The weight of any token.
  double weight(int32_t token) const;

  /// Weights of one block, those of `without` included, in units of `scale`, [size] ascending.
  struct Units {
    double scale = 0.0;              ///< weight = scale * unit
    const int32_t* token = nullptr;  ///< null: entry i is token first + i
    int32_t first = 0;
    ArrayView<const double> unit;  ///< [size]

    int32_t token_of(int64_t entry) const {
      return token != nullptr ? token[entry] : first + static_cast<int32_t>(entry);
    }
  };
  /// `buffer`: at least 4096; what Units points to is there or in this row.
  Units units(int64_t block, double* buffer) const;
  /// All weights, `[vocab_size]`.
  void expand(double* weights) const;
  /// The law of a block, `[size]`: probabilities and their logarithms, in which a probability below
  /// kLeastProbability (selector.h) counts as that. `mass`: what mass() returns. For rows that were
  /// loaded without left-out tokens.
  void law(int64_t block, double mass, double* prob, double* log_prob) const;

  /// Memory that lives as long as this row, for scores that differ from the model's: `[size]`.
  float* own_scores(int64_t size, float) { return resized(own_float_, size); }
  double* own_scores(int64_t size, double) { return resized(own_double_, size); }

 private:
  template <class T>
  static T* resized(std::vector<T>& values, int64_t size) {
    values.resize(static_cast<size_t>(size));
    return values.data();
  }

  struct Block {
    double top = 0.0;    // largest score
    double scale = 0.0;  // weight of one unit; 0: nothing is possible in this block
    double sum = 0.0;    // of the units, without what the caller left out
  };
  enum class Kind : uint8_t { kLogits, kWeights, kKept };

  template <class T>
  void load_logits_as(const Truncation& truncation, ArrayView<const int32_t> without);
  template <class T>
  void keep(const Truncation& truncation, ArrayView<const int32_t> without);
  template <class T>
  void sum_kept(ArrayView<const int32_t> without);
  template <class T>
  void take_units(ArrayView<const int32_t> tokens, const T* block, int64_t begin, int64_t size,
                  T top, bool possible);
  void weigh_blocks();
  template <class T>
  void law_of_logits(int64_t block, double mass, double* prob, double* log_prob) const;
  double unit(int32_t token) const;
  double score(int32_t token) const;
  double top() const;

  Kind kind_ = Kind::kWeights;
  RowsView source_;
  int64_t row_ = 0;
  double exponent_scale_ = 1.0;  // 1 / temperature
  std::vector<Block> block_;
  std::vector<double> without_weight_;
  std::vector<int32_t> kept_token_;  // ascending
  std::vector<double> kept_unit_;
  std::vector<float> own_float_;
  std::vector<double> own_double_;
};

/// Token of an exponential race in three heats: the blocks with their masses, the 256 lanes of the
/// winning block with theirs, the tokens of the winning lane with their weights. Arrival
/// -ln(U) / mass, U keyed by (seed, sequence, position) and 2^23 + block, 2^22 + lane (token mod
/// 256), or the token; purpose kPosition; ties: lowest id. The winner is distributed as the
/// normalised weights, depends on nothing but these numbers, and moves only where they move. A race
/// of all tokens at once would draw a number for each.
int32_t sample_at_position(const TargetRow& row, uint64_t seed, uint32_t sequence_id,
                           uint32_t position);

}  // namespace treespec
