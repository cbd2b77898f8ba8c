// SPDX-License-Identifier: Apache-2.0
// Which tokens of a row stay, as a rule on single tokens: top-k and top-p each keep the head of an
// order, so that the worst token that stays says all. Found by a radix search over that order, the
// row being read once per digit; it is the truncation of cpp/src/target_row.cc.
#pragma once

#include "row_sums.cuh"
#include "shared/fixed_point.hd.h"
#include "shared/ranking.hd.h"

namespace treespec::device {

/// Tokens that stay.
struct Kept {
  uint64_t last = UINT64_MAX;  // rank_word of the worst token that top-p keeps
  float least = kLowest;       // score / temperature that top-k asks for
  float temperature = 1.0f;
  double min_p = 0.0;

  TREESPEC_DEVICE bool by_top_k(float score) const {
    return score > kLowest && score / temperature >= least;
  }
  /// `weight`: relative to the likeliest token of the row.
  TREESPEC_DEVICE bool holds(float score, int32_t token, double weight) const {
    return by_top_k(score) && shared::rank_word(score, token) <= last && weight >= min_p;
  }
};

/// Searches the order of a row's tokens, best first.
template <int kThreads>
class RankSearch {
 public:
  struct Shared {
    uint64_t histogram[256];
    uint64_t scratch[kThreads / simt::kWarpSize];
    uint64_t before;
    int32_t digit;
  };

  /// The word at which what `amount` adds up to is enough: `more(before)` still holds before it and
  /// not after. UINT64_MAX if it never is. `visit(take)` calls take(word, amount) for all tokens, a
  /// thread for its own. Words: rank_word, whose low half is below 2^24.
  template <class Visit, class More>
  TREESPEC_DEVICE static uint64_t run(Shared& s, const Visit& visit, const More& more) {
    uint64_t prefix = 0, before = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
      if (shift == 24) {  // the highest byte of a token is 0
        prefix <<= 8;
        continue;
      }
      for (int i = simt::thread(); i < 256; i += kThreads) s.histogram[i] = 0;
      if (simt::thread() == 0) s.digit = -1;
      simt::sync_block();
      visit([&](uint64_t word, uint64_t amount) {
        if (shift < 56 && word >> (shift + 8) != prefix) return;
        simt::atomic_add(&s.histogram[word >> shift & 0xFFu], amount);
      });
      simt::sync_block();
      const uint64_t here = simt::thread() < 256 ? s.histogram[simt::thread()] : 0;
      const auto sum = simt::block_prefix_sum<kThreads>(here, s.scratch);
      if (more(before + sum.before) && !more(before + sum.before + here)) {
        s.digit = simt::thread();
        s.before = before + sum.before;
      }
      simt::sync_block();
      const int32_t digit = s.digit;
      before = s.before;
      simt::sync_block();
      if (digit < 0) return UINT64_MAX;
      prefix = prefix << 8 | static_cast<uint32_t>(digit);
    }
    return prefix;
  }
};

}  // namespace treespec::device
