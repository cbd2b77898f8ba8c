// SPDX-License-Identifier: Apache-2.0
// Draws from the laws of ranked lists: one block per frontier node, in the arithmetic of RowLaw.
#include <simt.cuh>

#include "block_reduce.cuh"
#include "block_sort.cuh"
#include "builders/sketch.cuh"
#include "shared/fixed_point.hd.h"
#include "shared/ranking.hd.h"
#include "treespec/device/candidates.h"
#include "treespec/rng.h"

namespace treespec::device {
namespace {

struct DrawRows {
  static constexpr int kThreads = 128;

  Proposal proposal;
  const RoundKey* key;
  ListSource lists;
  Sketches sketches;
  uint32_t* status;

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

  TREESPEC_DEVICE void operator()() const {
    const int b = simt::block_y();
    const Sketch sketch = sketches.of_sequence(b);
    if (simt::block() >= sketch.header->frontier_size) return;
    SketchNode& node = sketch.node[sketch.frontier[simt::block()]];
    Shared& s = *reinterpret_cast<Shared*>(simt::shared_memory());
    const Lists source = Lists::of_sequence(lists, b);
    bool bad_row = false;
    const int32_t list = source.list_of(node.depth, node.state, simt::block(), bad_row);
    if (bad_row && simt::thread() == 0) simt::atomic_or(status + b, kOutOfBounds);
    const int32_t size = list < 0 ? 0 : read_law(source, list, b, s);
    record(sketch, node, size, s);
    for (int32_t j = simt::thread(); j < node.num_draws; j += kThreads) {
      sketch.drawn[node.first_draw + j] = -1;
    }
    simt::sync_block();
    if (size == 0) return;  // nothing to draw
    int32_t* drawn = sketch.drawn + node.first_draw;
    switch (proposal) {
      case Proposal::kIid:
        return draw_independently(node, list, size, key[b], drawn, s);
      case Proposal::kTopPlusOne:
        return top_and_one(node, list, size, key[b], drawn, s);
      default:
        return race(node, 0, list, size, key[b], drawn, node.num_draws, s);
    }
  }

  /// Probabilities by ascending token; returns how many.
  TREESPEC_DEVICE int32_t read_law(const Lists& source, int32_t list, int b, Shared& s) const {
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
    if (bad) simt::atomic_or(status + b, kNotANumber);
    size = static_cast<int32_t>(simt::block_reduce<kThreads>(static_cast<uint64_t>(size),
                                                             uint64_t{0}, simt::Sum{}, s.scratch));
    const uint64_t magnitude = simt::block_reduce<kThreads>(
        uint64_t{falling(top)}, uint64_t{UINT32_MAX}, simt::Min{}, s.scratch);
    simt::sort_block<kThreads>(s.token_rank, padded, [](uint64_t x, uint64_t y) { return x < y; });
    const auto best = static_cast<double>(rising(static_cast<uint32_t>(magnitude)));
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
  static TREESPEC_DEVICE uint32_t falling(float value) { return shared::falling_bits(value); }
  static TREESPEC_DEVICE float rising(uint32_t bits) { return shared::from_falling_bits(bits); }

  /// Keeps the positive entries for the verifier.
  TREESPEC_DEVICE void record(const Sketch& sketch, SketchNode& node, int32_t size,
                              Shared& s) const {
    const int64_t row = &node - sketch.node;
    int32_t* token = sketch.law_token + row * sketches.size.law_width;
    float* prob = sketch.law_prob + row * sketches.size.law_width;
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
    if (simt::thread() == 0) node.law_size = count;
  }

  /// Independent draws by the inverse of the distribution function, in fixed point.
  TREESPEC_DEVICE static void draw_independently(const SketchNode& node, int32_t list, int32_t size,
                                                 const RoundKey& round, int32_t* drawn, Shared& s) {
    uint64_t total = 0;
    for (int32_t first = 0; first < size; first += kThreads) {
      const int32_t i = first + simt::thread();
      const uint64_t mass = i < size ? static_cast<uint64_t>(shared::to_fixed(s.prob[i])) : 0;
      const auto sum = simt::block_prefix_sum<kThreads>(mass, s.scratch);
      if (i < size) s.through[i] = total + sum.before + mass;
      total += sum.total;
    }
    simt::sync_block();
    for (int32_t j = simt::thread(); j < node.num_draws; j += kThreads) {
      const double u = uniform(round, Purpose::kDraft, node.slot, static_cast<uint32_t>(j));
      const uint64_t target = shared::share_of(u, total);
      int32_t low = 0, high = size - 1;  // the first place whose mass is beyond the target
      while (low < high) {
        const int32_t middle = (low + high) / 2;
        if (s.through[middle] > target) {
          high = middle;
        } else {
          low = middle + 1;
        }
      }
      drawn[j] = list + rank_at(s, low);
    }
  }

  /// The first `count` arrivals of an exponential race among tokens of rank >= `first_rank`.
  TREESPEC_DEVICE static void race(const SketchNode& node, int32_t first_rank, int32_t list,
                                   int32_t size, const RoundKey& round, int32_t* drawn,
                                   int32_t count, Shared& s) {
    const int32_t padded = simt::padded_to_sort(size);
    for (int32_t i = simt::thread(); i < padded; i += kThreads) {
      s.arrival[i] = {UINT64_MAX, static_cast<uint64_t>(i)};
      if (i >= size || rank_at(s, i) < first_rank || !(s.prob[i] > 0.0)) continue;
      const uint64_t random = random53(round, Purpose::kDraft, node.slot, token_at(s, i));
      const double u = static_cast<double>(random + 1) * kTwoToMinus53;
      const double time = 0.0 - shared::log_unit(u) / s.prob[i];  // no negative zero
      s.arrival[i].time = static_cast<uint64_t>(shared::double_to_bits(time));
    }
    simt::sort_block<kThreads>(s.arrival, padded, [](const Arrival& x, const Arrival& y) {
      return x.time != y.time ? x.time < y.time : x.place < y.place;
    });
    for (int32_t j = simt::thread(); j < count && j < size; j += kThreads) {
      if (s.arrival[j].time == UINT64_MAX) continue;
      drawn[j] = list + rank_at(s, static_cast<int32_t>(s.arrival[j].place));
    }
  }

  /// All draws but one are the likeliest tokens, the last is drawn from the rest. A probability too
  /// small for float32 is not in the recorded law, so that no verifier knows it.
  TREESPEC_DEVICE static void top_and_one(const SketchNode& node, int32_t list, int32_t size,
                                          const RoundKey& round, int32_t* drawn, Shared& s) {
    const int32_t num_top = node.num_draws - 1;
    for (int32_t i = simt::thread(); i < size; i += kThreads) {
      const int32_t rank = rank_at(s, i);
      // Probabilities fall with the rank: if one of these is 0, nothing is left to draw.
      if (rank < num_top && s.prob[i] > 0.0) drawn[rank] = list + rank;
    }
    race(node, num_top, list, size, round, drawn + num_top, 1, s);
  }
};

}  // namespace

void draw_rows(Stream stream, Proposal proposal, const RoundKey* key, const ListSource& lists,
               const Sketches& sketches, int32_t batch, int32_t max_frontier, uint32_t* status) {
  simt::launch(stream, {max_frontier, batch, sizeof(DrawRows::Shared)},
               DrawRows{proposal, key, lists, sketches, status});
}

}  // namespace treespec::device
