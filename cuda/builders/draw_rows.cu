// SPDX-License-Identifier: Apache-2.0
// Draws from the laws of ranked lists: one block per frontier node, in the arithmetic of RowLaw.
#include <simt.cuh>

#include "builders/row_law.cuh"
#include "builders/sketch.cuh"

namespace treespec::device {
namespace {

struct DrawRows {
  static constexpr int kThreads = 128;
  using Law = RowLaw<kThreads>;
  using Shared = Law::Shared;

  Proposal proposal;
  const RoundKey* key;
  ListSource lists;
  Sketches sketches;
  uint32_t* status;

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
    const int32_t size = list < 0 ? 0 : Law::read(source, list, status + b, s);
    const int64_t row = int64_t{sketch.frontier[simt::block()]} * sketches.size.law_width;
    const int32_t law_size = Law::record(size, sketch.law_token + row, sketch.law_prob + row, s);
    if (simt::thread() == 0) node.law_size = law_size;
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
      drawn[j] = list + Law::rank_at(s, low);
    }
  }

  /// The first `count` arrivals of an exponential race among tokens of rank >= `first_rank`.
  TREESPEC_DEVICE static void race(const SketchNode& node, int32_t first_rank, int32_t list,
                                   int32_t size, const RoundKey& round, int32_t* drawn,
                                   int32_t count, Shared& s) {
    Law::run_race(first_rank, size, round, node.slot, s);
    for (int32_t j = simt::thread(); j < count && j < size; j += kThreads) {
      if (s.arrival[j].time == Law::kNever) continue;
      drawn[j] = list + Law::rank_at(s, static_cast<int32_t>(s.arrival[j].place));
    }
  }

  /// All draws but one are the likeliest tokens, the last is drawn from the rest. A probability too
  /// small for float32 is not in the recorded law, so that no verifier knows it.
  TREESPEC_DEVICE static void top_and_one(const SketchNode& node, int32_t list, int32_t size,
                                          const RoundKey& round, int32_t* drawn, Shared& s) {
    const int32_t num_top = node.num_draws - 1;
    for (int32_t i = simt::thread(); i < size; i += kThreads) {
      const int32_t rank = Law::rank_at(s, i);
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
