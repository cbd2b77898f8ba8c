// SPDX-License-Identifier: Apache-2.0
// The tournament of cpp/src/verifiers/khisti.hd.h, held by a block of threads.
#pragma once

#include "block_sort.cuh"
#include "row_pair.cuh"
#include "verifiers/khisti.hd.h"

namespace treespec::device {

class Tournament {
 public:
  /// Memory for a law of up to `support` tokens.
  static size_t bytes(int32_t support) {
    return sizeof(double) * static_cast<size_t>(support) +
           sizeof(Contender) * static_cast<size_t>(simt::padded_to_sort(support));
  }

  template <class Pair>
  TREESPEC_DEVICE explicit Tournament(const Pair& rows)
      : pair_(rows.numbers()),
        law_(static_cast<double*>(rows.context().rule_memory)),
        order_(reinterpret_cast<Contender*>(law_ + pair_.size)),
        scratch_(rows.context().shared->scratch) {
    for (int32_t i = simt::thread(); i < pair_.size; i += Pair::kThreads) law_[i] = draft(i);
    static_assert(Pair::kThreads == kThreads);
    simt::sync_block();
  }

  TREESPEC_DEVICE int32_t size() const { return pair_.size; }
  TREESPEC_DEVICE Masses at(int32_t place) const {
    return {pair_.target[place] / pair_.target_mass, draft(place), law_[place]};
  }

  TREESPEC_DEVICE void rank() {
    const int32_t padded = simt::padded_to_sort(size());
    for (int32_t i = simt::thread(); i < padded; i += kThreads) {
      order_[i] = i < size() ? Contender::of(at(i), i) : Contender{UINT64_MAX, INT32_MAX};
    }
    simt::sort_block<kThreads>(order_, padded,
                               [](const Contender& a, const Contender& b) { return a.before(b); });
  }
  TREESPEC_DEVICE int32_t ranked(int32_t i) const { return order_[i].place; }

  TREESPEC_DEVICE LaterMasses later(int32_t first) const {
    LaterMasses own;
    for (int32_t i = first + simt::thread(); i < size(); i += kThreads) own.add(at(ranked(i)));
    return {simt::block_reduce<kThreads>(own.draft, uint64_t{0}, simt::Sum{}, scratch_),
            simt::block_reduce<kThreads>(own.winner, uint64_t{0}, simt::Sum{}, scratch_)};
  }

  TREESPEC_DEVICE void settle(const int32_t* place, const double* law, int32_t count) {
    // Each thread takes neighbours in the order.
    const int32_t share = (size() - count + kThreads - 1) / kThreads;
    const int32_t begin = count + simt::thread() * share;
    const int32_t end = begin + share < size() ? begin + share : size();
    LaterMasses own;
    for (int32_t i = begin; i < end; ++i) own.add(at(ranked(i)));
    const auto draft_sum = simt::block_prefix_sum<kThreads>(own.draft, scratch_);
    const auto winner_sum = simt::block_prefix_sum<kThreads>(own.winner, scratch_);
    LaterMasses later{draft_sum.total - draft_sum.before - own.draft,
                      winner_sum.total - winner_sum.before - own.winner};
    for (int32_t i = end - 1; i >= begin; --i) {
      const Masses token = at(ranked(i));
      law_[ranked(i)] = won_from_later(token, later);
      later.add(token);
    }
    if (simt::thread() == 0) {
      for (int32_t i = 0; i < count; ++i) law_[place[i]] = law[i];
    }
    simt::sync_block();
  }
  TREESPEC_DEVICE const double* law() const { return law_; }

  /// A set for each lane of a warp.
  template <class Bound>
  TREESPEC_DEVICE double least(const Bound& bound) const {
    static_assert(kProgramSets == simt::kWarpSize);
    return simt::warp_reduce(bound(static_cast<uint32_t>(simt::lane())), simt::Min{});
  }

 private:
  static constexpr int kThreads = 512;

  TREESPEC_DEVICE double draft(int32_t place) const {
    return pair_.draft[place] / pair_.draft_mass;
  }

  PairNumbers pair_;
  double* law_;  // of the winner so far
  Contender* order_;
  uint64_t* scratch_;
};

}  // namespace treespec::device
