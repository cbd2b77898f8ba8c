// SPDX-License-Identifier: Apache-2.0
// The law of a ranked list, ready to be drawn from, in the arithmetic of treespec::RowLaw.
#pragma once

#include <simt.cuh>

#include "block_reduce.cuh"
#include "block_sort.cuh"
#include "builders/lists.cuh"
#include "shared/fixed_point.hd.h"
#include "shared/ranking.hd.h"
#include "treespec/device/candidates.h"
#include "treespec/rng.h"

namespace treespec::device {

/// For a block of threads.
template <int kThreads>
struct RowLaw {
  static constexpr uint64_t kNever = UINT64_MAX;

  struct Arrival {
    uint64_t time;  // bits of a number >= 0: they rise with it
    uint64_t place;
  };
  struct Shared {
    uint64_t token_rank[kMostCandidates];  // token << 32 | rank, by ascending token
    double prob[kMostCandidates];          // float32 numbers, in the same order
    Arrival arrival[kMostCandidates];
    uint64_t through[kMostCandidates];  // fixed-point mass up to a place
    uint64_t scratch[kThreads / simt::kWarpSize];
  };

  /// Probabilities by ascending token; returns how many.
  TREESPEC_DEVICE static int32_t read(const Lists& source, int32_t list, uint32_t* status,
                                      Shared& s) {
    const int32_t padded = simt::padded_to_sort(source.width);
    int32_t size = 0;
    bool bad = false;
    float top = kImpossible;
    for (int32_t first = 0; first < padded; first += kThreads) {
      const int32_t k = first + simt::thread();
      const float logprob = k < source.width ? source.logprob[list + k] : kImpossible;
      bad |= unsound(logprob);
      const bool possible = logprob > kImpossible && !unsound(logprob);
      if (possible && logprob > top) top = logprob;
      size += possible;
      if (k >= padded) continue;
      s.token_rank[k] = UINT64_MAX;
      if (!possible) continue;
      s.token_rank[k] = static_cast<uint64_t>(static_cast<uint32_t>(source.token[list + k])) << 32 |
                        static_cast<uint32_t>(k);
    }
    if (bad) simt::atomic_or(status, kNotANumber);
    size = static_cast<int32_t>(simt::block_reduce<kThreads>(static_cast<uint64_t>(size),
                                                             uint64_t{0}, simt::Sum{}, s.scratch));
    const uint64_t magnitude = simt::block_reduce<kThreads>(
        uint64_t{shared::falling_bits(top)}, uint64_t{UINT32_MAX}, simt::Min{}, s.scratch);
    simt::sort_block<kThreads>(s.token_rank, padded, [](uint64_t x, uint64_t y) { return x < y; });
    const auto best =
        static_cast<double>(shared::from_falling_bits(static_cast<uint32_t>(magnitude)));
    uint64_t sum = 0;
    for (int32_t i = simt::thread(); i < size; i += kThreads) {
      const auto logprob = static_cast<double>(source.logprob[list + rank_at(s, i)]);
      s.prob[i] = shared::exp_nonpositive(logprob - best);
      sum += static_cast<uint64_t>(shared::to_raw_fixed(s.prob[i]));
    }
    sum = simt::block_reduce<kThreads>(sum, uint64_t{0}, simt::Sum{}, s.scratch);
    const double mass = shared::from_raw_fixed(sum);
    for (int32_t i = simt::thread(); i < size; i += kThreads) {
      s.prob[i] = static_cast<double>(static_cast<float>(s.prob[i] / mass));
    }
    simt::sync_block();
    return size;
  }
  static TREESPEC_DEVICE int32_t rank_at(const Shared& s, int32_t place) {
    return static_cast<int32_t>(s.token_rank[place] & 0xFFFFFFFFu);
  }
  static TREESPEC_DEVICE uint32_t token_at(const Shared& s, int32_t place) {
    return static_cast<uint32_t>(s.token_rank[place] >> 32);
  }

  /// Keeps the positive entries for the verifier; returns how many.
  TREESPEC_DEVICE static int32_t record(int32_t size, int32_t* token, float* prob, Shared& s) {
    int32_t count = 0;
    for (int32_t first = 0; first < size; first += kThreads) {
      const int32_t i = first + simt::thread();
      const bool positive = i < size && s.prob[i] > 0.0;
      const auto sum = simt::block_prefix_sum<kThreads>(uint64_t{positive}, s.scratch);
      if (positive) {
        const auto at = count + static_cast<int32_t>(sum.before);
        token[at] = static_cast<int32_t>(token_at(s, i));
        prob[at] = static_cast<float>(s.prob[i]);
      }
      count += static_cast<int32_t>(sum.total);
    }
    return count;
  }

  /// Sorts the places of tokens of rank >= `first_rank` by their arrival in an exponential race;
  /// what does not take part comes last, at kNever.
  TREESPEC_DEVICE static void run_race(int32_t first_rank, int32_t size, const RoundKey& round,
                                       uint32_t slot, Shared& s) {
    const int32_t padded = simt::padded_to_sort(size);
    for (int32_t i = simt::thread(); i < padded; i += kThreads) {
      s.arrival[i] = {kNever, static_cast<uint64_t>(i)};
      if (i >= size || rank_at(s, i) < first_rank || !(s.prob[i] > 0.0)) continue;
      const uint64_t random = random53(round, Purpose::kDraft, slot, token_at(s, i));
      const double u = static_cast<double>(random + 1) * kTwoToMinus53;
      const double time = 0.0 - shared::log_unit(u) / s.prob[i];  // no negative zero
      s.arrival[i].time = static_cast<uint64_t>(shared::double_to_bits(time));
    }
    simt::sort_block<kThreads>(s.arrival, padded, [](const Arrival& x, const Arrival& y) {
      return x.time != y.time ? x.time < y.time : x.place < y.place;
    });
  }
};

}  // namespace treespec::device
