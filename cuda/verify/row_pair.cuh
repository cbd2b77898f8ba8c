// SPDX-License-Identifier: Apache-2.0
// The row pair (target residual P, draft law Q) of a node, held by a block of threads: what
// cpp/src/verifiers/row_pair.cc does, with the same bits. Every thread keeps the same scalars; the
// numbers at the law's tokens lie in memory, entry i written by thread i % kThreads alone.
#pragma once

#include "row_sums.cuh"
#include "shared/fixed_point.hd.h"
#include "shared/law.hd.h"
#include "treespec/rng.h"
#include "truncation.cuh"

namespace treespec::device {

constexpr uint32_t kBlockDraw = 1u << 23;  // as in target_row.cc
constexpr uint32_t kLaneDraw = 1u << 22;

/// When an entry of an exponential race arrives.
struct Arrival {
  double time;
  int32_t entry;
  int32_t padding = 0;
};
struct Earlier {
  TREESPEC_DEVICE Arrival operator()(const Arrival& a, const Arrival& b) const {
    return b.time < a.time || (b.time == a.time && b.entry < a.entry) ? b : a;
  }
};

/// The logits of a batch, of a type that is known when one is read: walks read few.
struct LogitReader {
  RowsView rows;
  int32_t size;  // of a row
  int32_t num_blocks;

  TREESPEC_DEVICE float value(int64_t row, int32_t token) const {
    const int64_t at = row * rows.row_stride + token;
    switch (rows.dtype) {
      case DType::kFloat16:
        return Float16::value(static_cast<const uint16_t*>(rows.data)[at]);
      case DType::kBFloat16:
        return BFloat16::value(static_cast<const uint16_t*>(rows.data)[at]);
      default:
        return static_cast<const float*>(rows.data)[at];
    }
  }
};

/// Weights of the blocks of a row.
struct BlockWeights {
  double scale[kMostBlocks];  // of one unit; 0: nothing is possible in this block
  double mass[kMostBlocks];
};

/// What all pairs of a walk share: inputs, and scratch memory.
struct WalkContext {
  static constexpr int kThreads = 512;

  struct Shared {
    uint64_t mass[kMostBlocks];
    union {
      uint64_t share[kBlock];
      RankSearch<kThreads>::Shared search;
      uint32_t marks[kThreads / simt::kWarpSize][kMarkWords];
    };
    uint64_t scratch[kThreads / simt::kWarpSize];
    double real_scratch[kThreads / simt::kWarpSize];
    Arrival arrival[kThreads / simt::kWarpSize];
    int32_t drawn;
  };

  LogitReader rows;
  RowSums sums;
  DraftLaw law;
  Shared* shared;
  BlockWeights* weights;  // shared memory; of the row that was loaded last
  int64_t first_row;      // of this sequence
  double scale;           // 1 / temperature
  Sampling sampling;
  ScoreChanges changes;
  const uint32_t* use_table;
  Trees trees;
  int32_t sequence;
  uint32_t problem = kOk;
  void* rule_memory = nullptr;  // of this sequence, for the rule
};

/// P and Q of a pair at the tokens of the law, to be divided by the mass of each.
struct PairNumbers {
  const double* target;
  const double* draft;
  int32_t size;
  double target_mass, draft_mass;
};

class DevicePair {
 public:
  using Context = WalkContext;
  static constexpr int kThreads = Context::kThreads;

  /// `target`, `draft`: room for the longest row of a law, this pair's own.
  TREESPEC_DEVICE DevicePair(Context& context, double* target, double* draft)
      : context_(&context), target_(target), draft_(draft) {}
  DevicePair() = default;  // unmarked: nvcc warns of marks on defaulted functions

  /// False: the row is no law, and the context knows why.
  TREESPEC_DEVICE_CALL bool load(int32_t node, bool drew) {
    select(node);
    law_ =
        drew && context_->law.row_of_node != nullptr ? LawRow::of(context_->law, node_) : LawRow{};
    if (!law_.sound) context_->problem |= kOutOfBounds;
    truncated_ = is_truncated(context_->sampling, context_->rows.size);
    if (!law_.sound || !weigh_blocks(context_->sums.sum)) return false;
    if (truncated_) truncate();
    uint64_t raw = 0, draft = 0;
    for (int32_t i = simt::thread(); i < law_.size; i += kThreads) {
      target_[i] = weight(law_.token_of(i));
      draft_[i] = static_cast<double>(law_.prob[i]);
      raw += static_cast<uint64_t>(shared::to_raw_fixed(target_[i]));
      draft += static_cast<uint64_t>(shared::to_fixed(draft_[i]));
    }
    raw = sum(raw);
    draft_sum_ = sum(draft);
    const double rest = rest_of_row();
    rest_scale_ = 1.0 / (rest + shared::from_raw_fixed(raw));
    rest_mass_ = rest * rest_scale_;
    target_sum_ = scale_target(rest_scale_);
    return true;
  }

  TREESPEC_DEVICE bool drawable(int32_t token) const {
    const int32_t at = find(token);
    return draft_sum_ > 0 && at >= 0 && draft_[at] > 0.0;
  }
  TREESPEC_DEVICE double acceptance(int32_t token, double weight = 1.0) const {
    const int32_t at = find(token);
    const double target_side = weight * target_[at] * shared::from_fixed(draft_sum_);
    const double draft_side = draft_[at] * target_mass();
    return target_side < draft_side ? target_side / draft_side : 1.0;
  }
  TREESPEC_DEVICE bool accepts(int32_t token, double u, double weight = 1.0) const {
    const int32_t at = find(token);
    return u * draft_[at] * target_mass() < weight * target_[at] * shared::from_fixed(draft_sum_);
  }

  TREESPEC_DEVICE_CALL double reject(double weight = 1.0) {
    const double target_scale = weight / target_mass();
    const double draft_scale = 1.0 / shared::from_fixed(draft_sum_);
    const double left = change_target(target_scale, [&](double target, double draft) {
      return target * target_scale - draft * draft_scale;
    });
    if (left > 0.0 || weight != 1.0) return left;
    for (int32_t i = simt::thread(); i < law_.size; i += kThreads) target_[i] = draft_[i];
    simt::sync_block();
    target_sum_ = draft_sum_;
    return 0.0;
  }

  TREESPEC_DEVICE_CALL double subtract(double gamma, double rho) {
    const double target_scale = 1.0 / target_mass();
    const double draft_scale = 1.0 / shared::from_fixed(draft_sum_);
    return change_target(target_scale, [&](double target, double draft) {
      const double p = target * target_scale, q = draft * draft_scale;
      return p - gamma * (p / rho < q ? p / rho : q);
    });
  }

  TREESPEC_DEVICE_CALL double overlap(double rho) const {
    const double target_scale = 1.0 / target_mass();
    const double draft_scale = 1.0 / shared::from_fixed(draft_sum_);
    uint64_t total = 0;
    for (int32_t i = simt::thread(); i < law_.size; i += kThreads) {
      const double p = target_[i] * target_scale, q = draft_[i] * draft_scale;
      total += static_cast<uint64_t>(shared::to_fixed(p / rho < q ? p / rho : q));
    }
    return shared::from_fixed(sum(total));
  }

  /// Place of a token in the law, -1 if it is not there.
  TREESPEC_DEVICE int32_t find(int32_t token) const {
    const int32_t at = law_.lower_bound(token);
    return at < law_.size && law_.token_of(at) == token ? at : -1;
  }
  TREESPEC_DEVICE PairNumbers numbers() const {
    return {target_, draft_, law_.size, target_mass(), shared::from_fixed(draft_sum_)};
  }
  TREESPEC_DEVICE const Context& context() const { return *context_; }

  /// Q <- norm(law), law over the same tokens.
  TREESPEC_DEVICE void replace_draft(const double* law) {
    simt::sync_block();  // all have read the entries of others
    uint64_t total = 0;
    for (int32_t i = simt::thread(); i < law_.size; i += kThreads) {
      draft_[i] = law[i];
      total += static_cast<uint64_t>(shared::to_fixed(draft_[i]));
    }
    draft_sum_ = sum(total);
  }

  /// Probability of a token, and the sum of term(probability) over all, in the target's own row.
  /// After load without a law.
  TREESPEC_DEVICE double probability(int32_t token) const { return weight(token) / rest_of_row(); }
  template <class Term>
  TREESPEC_DEVICE uint64_t sum_over_row(const Term& term) const {
    const double mass = rest_of_row();
    uint64_t total = 0;
    for (int32_t t = simt::thread(); t < context_->rows.size; t += kThreads) {
      total += term(weight(t) / mass);
    }
    return sum(total);
  }

  /// The target's own row as TargetRow::law has it; after load without a law.
  TREESPEC_DEVICE shared::Normaliser normaliser() const {
    const float* top = context_->sums.top + node_ * context_->rows.num_blocks;
    float row_top = kLowest;
    for (int32_t b = 0; b < context_->rows.num_blocks; ++b) {
      row_top = top[b] > row_top ? top[b] : row_top;
    }
    return shared::Normaliser::of(rest_of_row(), static_cast<double>(row_top), context_->scale);
  }
  TREESPEC_DEVICE shared::LawPoint point(int32_t token, const shared::Normaliser& by) const {
    const double scale = scale_of(token);
    if (!(scale > 0.0)) return {};
    const float logit = score(token);
    const double weight = scale * kept_unit(logit, token);
    return weight > 0.0 ? by.point(weight, static_cast<double>(logit)) : shared::LawPoint{};
  }

  TREESPEC_DEVICE_CALL void remove(int32_t token) {
    constexpr uint64_t kTooSmall = uint64_t{1} << 50;  // as on the CPU
    const int32_t at = find(token);
    draft_sum_ -= static_cast<uint64_t>(shared::to_fixed(draft_[at]));
    simt::sync_block();  // all have read it
    if (simt::thread() == 0) draft_[at] = 0.0;
    simt::sync_block();
    if (draft_sum_ < kTooSmall) renormalise_draft();
  }

  /// A token from the current P: inverse CDF over the blocks, then over the tokens of one.
  TREESPEC_DEVICE_CALL int32_t sample(double u) const {
    Context::Shared& s = *context_->shared;
    weigh_blocks(truncated_ ? context_->sums.kept : context_->sums.sum);
    for (int32_t b = simt::thread(); b < context_->rows.num_blocks; b += kThreads) {
      const double mass = context_->weights->mass[b];
      s.mass[b] = static_cast<uint64_t>(shared::to_fixed(rest_scale_ * mass));
    }
    simt::sync_block();
    for (int32_t i = simt::thread(); i < law_.size; i += kThreads) {
      const int32_t b = law_.token_of(i) / static_cast<int32_t>(kBlock);
      simt::atomic_add(&s.mass[b], static_cast<uint64_t>(shared::to_fixed(target_[i])));
    }
    simt::sync_block();
    uint64_t total = 0;
    for (int32_t b = 0; b < context_->rows.num_blocks; ++b) total += s.mass[b];
    uint64_t offset = shared::share_of(u, total);
    int32_t block = 0;
    while (block + 1 < context_->rows.num_blocks && offset >= s.mass[block]) {
      offset -= s.mass[block++];
    }
    return sample_block(block, s.mass[block], offset);
  }

  /// A token of the target's own row, by the race of `treespec::sample_at_position`. After load
  /// without a law.
  TREESPEC_DEVICE_CALL int32_t sample_at_position(const RoundKey& key) const {
    const int32_t block = winner(key, context_->rows.num_blocks, [&](int32_t b) {
      return Entrant{context_->weights->mass[b], kBlockDraw + static_cast<uint32_t>(b)};
    });
    const auto kLanes = static_cast<int32_t>(shared::kLanes);
    const int32_t begin = block * static_cast<int32_t>(kBlock);
    const int32_t end = context_->rows.size - begin < kBlock ? context_->rows.size
                                                             : begin + static_cast<int32_t>(kBlock);
    const int32_t lane = winner(key, kLanes, [&](int32_t l) {
      double mass = 0.0;
      for (int32_t t = begin + l; t < end; t += kLanes) mass += unit(t);
      return Entrant{mass, kLaneDraw + static_cast<uint32_t>(l)};
    });
    const int32_t place = winner(key, kSteps, [&](int32_t step) {
      const int32_t t = begin + step * kLanes + lane;
      return Entrant{t < end ? unit(t) : 0.0, static_cast<uint32_t>(t)};
    });
    return begin + place * kLanes + lane;
  }

  /// The likeliest token of a row that was summed at temperature 0; -1: the row is no law.
  TREESPEC_DEVICE_CALL int32_t argmax(int32_t node) {
    select(node);
    if (!weigh_blocks(context_->sums.sum)) return -1;
    const int64_t at = node_ * context_->rows.num_blocks;
    int32_t best = 0;
    for (int32_t b = 1; b < context_->rows.num_blocks; ++b) {
      if (context_->sums.top[at + b] > context_->sums.top[at + best]) best = b;
    }
    return best * static_cast<int32_t>(kBlock) + context_->sums.arg[at + best];
  }

 private:
  struct Entrant {
    double mass;
    uint32_t draw;
  };

  TREESPEC_DEVICE uint64_t sum(uint64_t value) const {
    return simt::block_reduce<kThreads>(value, uint64_t{0}, simt::Sum{}, context_->shared->scratch);
  }
  TREESPEC_DEVICE double target_mass() const {
    return shared::from_fixed(target_sum_) + rest_mass_;
  }

  /// Fills the context's weights; false, and the problem is noted, when the row
  /// has NaN, +inf, or nothing.
  TREESPEC_DEVICE_CALL bool weigh_blocks(const double* sum) const {
    BlockWeights& weights = *context_->weights;
    const int32_t num_blocks = context_->rows.num_blocks;
    const float* top = context_->sums.top + node_ * num_blocks;
    float row_top = kLowest;
    bool sound = true;
    for (int32_t b = 0; b < num_blocks; ++b) {
      sound = sound && top[b] < -kLowest;  // false for NaN
      row_top = top[b] > row_top ? top[b] : row_top;
    }
    if (!sound) context_->problem |= kNotANumber;
    if (sound && row_top == kLowest) context_->problem |= kEmptyRow;
    if (!sound || row_top == kLowest) return false;
    simt::sync_block();  // nobody reads the values of another row any more
    for (int32_t b = simt::thread(); b < num_blocks; b += kThreads) {
      const double below = static_cast<double>(top[b]) - static_cast<double>(row_top);
      weights.scale[b] = top[b] == kLowest ? 0.0 : shared::exp_nonpositive(below * context_->scale);
      weights.mass[b] = weights.scale[b] * sum[node_ * num_blocks + b];
    }
    simt::sync_block();
    return true;
  }

  TREESPEC_DEVICE double rest_of_row() const {
    double rest = 0.0;
    for (int32_t b = 0; b < context_->rows.num_blocks; ++b) {
      rest += context_->weights->mass[b];
    }
    return rest;
  }

  TREESPEC_DEVICE void select(int32_t node) {
    node_ = context_->first_row + node;
    changes_ = NodeChanges::of(context_->changes, context_->use_table, context_->trees,
                               context_->rows.size, context_->sequence, node);
  }

  TREESPEC_DEVICE_CALL float score(int32_t token) const {
    const float logit = context_->rows.value(node_, token);
    return changes_.any() ? changes_.apply(logit, token) : logit;
  }
  TREESPEC_DEVICE_CALL double unit_of(float logit, int32_t token) const {
    const int32_t b = token / static_cast<int32_t>(kBlock);
    const float top = context_->sums.top[node_ * context_->rows.num_blocks + b];
    if (top == kLowest) return 0.0;
    return static_cast<double>(shared::exp_unit(logit, top, context_->scale));
  }
  TREESPEC_DEVICE double scale_of(int32_t token) const {
    return context_->weights->scale[token / static_cast<int32_t>(kBlock)];
  }
  /// exp of a logit relative to the top of its block; 0 for what is truncated.
  TREESPEC_DEVICE double unit(int32_t token) const { return kept_unit(score(token), token); }
  TREESPEC_DEVICE double kept_unit(float logit, int32_t token) const {
    const double all = unit_of(logit, token);
    return !truncated_ || kept_.holds(logit, token, scale_of(token) * all) ? all : 0.0;
  }
  TREESPEC_DEVICE double weight(int32_t token) const {
    if (token < 0 || token >= context_->rows.size) return 0.0;
    const double scale = scale_of(token);
    return scale > 0.0 ? scale * unit(token) : 0.0;
  }

  /// Finds out what stays, and sums the blocks of that again.
  TREESPEC_DEVICE_CALL void truncate() {
    const Sampling& sampling = context_->sampling;
    const bool few = keeps_few(sampling, context_->rows.size);
    kept_ = Kept{};
    kept_.temperature = static_cast<float>(sampling.temperature);
    if (few) {
      const auto wanted = static_cast<uint64_t>(sampling.top_k);
      const uint64_t kth = search([](float, int32_t) { return uint64_t{1}; },
                                  [wanted](uint64_t before) { return before < wanted; });
      if (kth != UINT64_MAX) kept_.least = shared::value_of_word(kth) / kept_.temperature;
    }
    if (sampling.top_p < 1.0) {
      const auto mass_of = [&](float logit, int32_t token) {
        const double weight = scale_of(token) * unit_of(logit, token);
        return static_cast<uint64_t>(shared::to_raw_fixed(weight));
      };
      double mass = rest_of_row();
      if (few) {
        uint64_t held = 0;
        for_all([&](float logit, int32_t token) { held += mass_of(logit, token); });
        mass = shared::from_raw_fixed(sum(held));
      }
      const double enough = sampling.top_p * mass;
      kept_.last = search(
          mass_of, [enough](uint64_t before) { return shared::from_raw_fixed(before) < enough; });
    }
    kept_.min_p = sampling.min_p;
    sum_kept();
    weigh_blocks(context_->sums.kept);
  }

  /// visit(score, token) for this thread's share of the tokens that top-k keeps.
  template <class Visit>
  TREESPEC_DEVICE void for_all(const Visit& visit) const {
    for (int32_t t = simt::thread(); t < context_->rows.size; t += kThreads) {
      const float logit = score(t);
      if (kept_.by_top_k(logit)) visit(logit, t);
    }
  }

  /// RankSearch over the tokens that top-k keeps; `amount(score, token)`.
  template <class Amount, class More>
  TREESPEC_DEVICE uint64_t search(const Amount& amount, const More& more) const {
    return RankSearch<kThreads>::run(
        context_->shared->search,
        [&](const auto& take) {
          for_all([&](float logit, int32_t token) {
            take(shared::rank_word(logit, token), amount(logit, token));
          });
        },
        more);
  }

  /// Sums of the blocks over what stays, without the law's tokens: a warp for every block.
  TREESPEC_DEVICE_CALL void sum_kept() const {
    constexpr int kWarps = kThreads / simt::kWarpSize;
    const int32_t num_blocks = context_->rows.num_blocks;
    uint32_t* marks = context_->shared->marks[simt::warp()];
    simt::sync_block();
    for (int32_t b = simt::warp(); b < num_blocks; b += kWarps) {
      const int64_t at = node_ * num_blocks + b;
      const int32_t begin = b * static_cast<int32_t>(kBlock);
      const float top = context_->sums.top[at];
      uint8_t left_out[kSteps] = {};
      mark_law(law_, begin, marks, left_out);
      const auto kept_score = [&](int32_t token) {
        const float logit = score(token);
        const double weight = context_->weights->scale[b] * unit_of(logit, token);
        return kept_.holds(logit, token, weight) ? logit : kLowest;
      };
      const ComputedBlock<decltype(kept_score)> block(begin, context_->rows.size, kept_score);
      const double sum = top == kLowest ? 0.0 : block.exp_sum(top, context_->scale, left_out);
      if (simt::lane() == 0) context_->sums.kept[at] = sum;
    }
    simt::sync_block();
  }

  /// Multiplies P at the law's tokens; returns their sum.
  TREESPEC_DEVICE_CALL uint64_t scale_target(double factor) {
    uint64_t total = 0;
    for (int32_t i = simt::thread(); i < law_.size; i += kThreads) {
      target_[i] *= factor;
      total += static_cast<uint64_t>(shared::to_fixed(target_[i]));
    }
    return sum(total);
  }

  /// P <- norm(change(P, Q)+) at the law's tokens, norm(rest_factor * P) elsewhere; returns the
  /// mass before it was normalised.
  template <class Change>
  TREESPEC_DEVICE double change_target(double rest_factor, const Change& change) {
    simt::sync_block();  // all have read what is changed now
    uint64_t total = 0;
    for (int32_t i = simt::thread(); i < law_.size; i += kThreads) {
      const double changed = change(target_[i], draft_[i]);
      target_[i] = changed > 0.0 ? changed : 0.0;
      total += static_cast<uint64_t>(shared::to_fixed(target_[i]));
    }
    target_sum_ = sum(total);
    rest_scale_ *= rest_factor;
    rest_mass_ *= rest_factor;
    const double left = target_mass();
    if (!(left > 0.0)) return 0.0;
    const double factor = 1.0 / left;
    rest_scale_ *= factor;
    rest_mass_ *= factor;
    target_sum_ = scale_target(factor);
    return left;
  }

  TREESPEC_DEVICE_CALL void renormalise_draft() {
    double largest = 0.0;
    for (int32_t i = simt::thread(); i < law_.size; i += kThreads) {
      largest = draft_[i] > largest ? draft_[i] : largest;
    }
    largest =
        simt::block_reduce<kThreads>(largest, 0.0, simt::Max{}, context_->shared->real_scratch);
    draft_sum_ = 0;
    if (!(largest > 0.0)) return;
    uint64_t raw = 0;
    for (int32_t i = simt::thread(); i < law_.size; i += kThreads) {
      draft_[i] *= 1.0 / largest;
      raw += static_cast<uint64_t>(shared::to_raw_fixed(draft_[i]));
    }
    const double factor = 1.0 / shared::from_raw_fixed(sum(raw));
    uint64_t total = 0;
    for (int32_t i = simt::thread(); i < law_.size; i += kThreads) {
      draft_[i] *= factor;
      total += static_cast<uint64_t>(shared::to_fixed(draft_[i]));
    }
    draft_sum_ = sum(total);
  }

  /// The token at `offset` of `mass` in a block, ascending.
  TREESPEC_DEVICE int32_t sample_block(int32_t block, uint64_t mass, uint64_t offset) const {
    Context::Shared& s = *context_->shared;
    const int32_t begin = block * static_cast<int32_t>(kBlock);
    const double scale = context_->weights->scale[block];
    const double unit_share = rest_scale_ * scale / shared::from_fixed(mass);
    const double law_share = 1.0 / shared::from_fixed(mass);
    for (int32_t i = simt::thread(); i < kBlock; i += kThreads) {
      const bool there = begin + i < context_->rows.size && scale > 0.0;
      s.share[i] =
          there ? static_cast<uint64_t>(shared::to_fixed(unit(begin + i) * unit_share)) : 0;
    }
    simt::sync_block();
    const int32_t end = law_.lower_bound(begin + static_cast<int32_t>(kBlock));
    for (int32_t e = law_.lower_bound(begin) + simt::thread(); e < end; e += kThreads) {
      const int32_t place = law_.token_of(e) - begin;
      if (place < 0 || place >= kBlock) continue;
      s.share[place] = static_cast<uint64_t>(shared::to_fixed(target_[e] * law_share));
    }
    simt::sync_block();
    constexpr int32_t kNeighbours =
        static_cast<int32_t>(kBlock) / kThreads;  // neighbours of a thread
    uint64_t own = 0;
    for (int32_t i = 0; i < kNeighbours; ++i) own += s.share[simt::thread() * kNeighbours + i];
    const auto prefix = simt::block_prefix_sum<kThreads>(own, s.scratch);
    const uint64_t threshold = shared::rescale(offset, mass, prefix.total);
    if (simt::thread() == 0) s.drawn = begin;
    simt::sync_block();
    if (prefix.before <= threshold && threshold < prefix.before + own) {
      uint64_t cumulative = prefix.before;
      int32_t i = simt::thread() * kNeighbours;
      while (cumulative + s.share[i] <= threshold) cumulative += s.share[i++];
      s.drawn = begin + i;
    }
    simt::sync_block();
    return s.drawn;
  }

  /// Entry of the earliest arrival, -ln(U) / mass; ties: lowest entry. `entrant(i)`: its mass and
  /// draw index.
  template <class MakeEntrant>
  TREESPEC_DEVICE int32_t winner(const RoundKey& key, int32_t size,
                                 const MakeEntrant& entrant) const {
    Arrival first{std::numeric_limits<double>::infinity(), INT32_MAX};
    for (int32_t i = simt::thread(); i < size; i += kThreads) {
      const Entrant one = entrant(i);
      if (!(one.mass > 0.0)) continue;
      const uint64_t random = random53(key, Purpose::kPosition, 0, one.draw);
      const double u = static_cast<double>(random + 1) * kTwoToMinus53;
      first = Earlier{}(first, {-shared::log_unit(u) / one.mass, i});
    }
    const Arrival none{std::numeric_limits<double>::infinity(), INT32_MAX};
    first = simt::block_reduce<kThreads>(first, none, Earlier{}, context_->shared->arrival);
    return first.entry < size ? first.entry : 0;
  }

  Context* context_ = nullptr;
  double* target_ = nullptr;
  double* draft_ = nullptr;
  LawRow law_;
  NodeChanges changes_;
  Kept kept_;
  bool truncated_ = false;
  int64_t node_ = 0;  // row of the batch
  uint64_t target_sum_ = 0, draft_sum_ = 0;
  double rest_scale_ = 0.0, rest_mass_ = 0.0;
};

}  // namespace treespec::device
