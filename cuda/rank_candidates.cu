// SPDX-License-Identifier: Apache-2.0
// Ranks candidates of raw logits. The first launch reads all: one warp per block of 4096 logits,
// its sum of exponentials, and the largest of every 128. The second takes a row per block of
// threads: only where a maximum is among the best `width` can candidates be, so that it reads
// little again, mostly from the second-level cache.
#include <limits>
#include <simt.cuh>

#include "block_reduce.cuh"
#include "block_sort.cuh"
#include "logit_rows.cuh"
#include "shared/ranking.hd.h"
#include "treespec/device/candidates.h"
#include "treespec/device/trees.h"

namespace treespec::device {
namespace {

constexpr int kGroups = simt::kWarpSize;  // of a block: what a thread reads, kSteps chunks

/// What the first launch leaves for the second.
struct Statistics {
  float* top;        // [num_rows, num_blocks], NaN if the block has one
  double* sum;       // [num_rows, num_blocks], of exp(scale * (x - top))
  float* group_top;  // [num_rows, num_blocks, kGroups]

  static size_t bytes(int64_t num_rows, int64_t num_blocks) {
    const auto blocks = static_cast<size_t>(num_rows * num_blocks);
    return blocks * (sizeof(double) + sizeof(float) * (1 + kGroups));
  }
  static Statistics at(void* workspace, int64_t num_rows, int64_t num_blocks) {
    Statistics s{};
    s.sum = static_cast<double*>(workspace);
    s.top = reinterpret_cast<float*>(s.sum + num_rows * num_blocks);
    s.group_top = s.top + num_rows * num_blocks;
    return s;
  }
};

template <class Element>
struct SumBlocks {
  static constexpr int kThreads = 128;
  static constexpr int kWarps = kThreads / simt::kWarpSize;
  Rows<Element> rows;
  double scale;
  Statistics out;

  TREESPEC_DEVICE void operator()() const {
    const int64_t item = int64_t{simt::block()} * kWarps + simt::warp();
    if (item >= rows.num_rows * rows.num_blocks) return;
    const int64_t r = item / rows.num_blocks;
    if (!rows.given(r)) return;
    const auto* row = rows.row(r);
    const auto begin = static_cast<int32_t>((item % rows.num_blocks) * kBlock);
    LogitBlock<Element> block;
    block.load(row, begin, rows.size);
    const float own_top = block.own_top();
    const float top = simt::warp_reduce(own_top, simt::Max{});
    const bool sound = !simt::any(block.has_nan());
    const uint8_t all[kSteps] = {};
    const double sum = top == kLowest ? 0.0 : block.exp_sum(top, scale, all);
    out.group_top[item * kGroups + simt::lane()] = own_top;
    if (simt::lane() != 0) return;
    out.top[item] = sound ? top : std::numeric_limits<float>::quiet_NaN();
    out.sum[item] = sum;
  }
};

template <class Element>
struct RankRow {
  static constexpr int kThreads = 512;
  static constexpr int kThreadsPerGroup = kSteps;  // a chunk each
  static constexpr int kGroupsPerPass = kThreads / kThreadsPerGroup;
  static constexpr int32_t kPass = kThreads * kChunk;  // most entries that one pass can add
  static constexpr int32_t kCapacity = 2 * kPass;

  struct Shared {
    uint64_t word[kCapacity];  // candidates as rank_word
    double mass[kMostBlocks];
    uint16_t group[kMostBlocks * kGroups];  // where candidates can be
    int32_t histogram[256];
    int32_t scratch[kThreads / simt::kWarpSize];
    float top_scratch[kThreads / simt::kWarpSize];
    double log_mass;
    uint64_t last;  // word of the worst entry of interest
    int32_t num_groups;
    int32_t count;
    uint32_t digit;
    int32_t wanted;
  };

  Rows<Element> rows;
  double scale;
  Statistics statistics;
  CandidateLists lists;
  uint32_t* status;

  TREESPEC_DEVICE void operator()() const {
    Shared& s = *reinterpret_cast<Shared*>(simt::shared_memory());
    const int64_t r = simt::block();
    const float* block_top = statistics.top + r * rows.num_blocks;
    const bool given = rows.given(r);
    const bool mine = given && simt::thread() < rows.num_blocks;
    const float my_top = mine ? block_top[simt::thread()] : kLowest;
    const float infinity = -kLowest;
    const bool sound =
        simt::block_reduce<kThreads>(my_top < infinity ? 1 : 0, 1, simt::Min{}, s.scratch) == 1;
    const float top = simt::block_reduce<kThreads>(my_top, kLowest, simt::Max{}, s.top_scratch);
    if (!sound || top == kLowest) {
      if (given && simt::thread() == 0) {
        simt::atomic_or(status + r / rows.rows_per_sequence, sound ? kEmptyRow : kNotANumber);
      }
      return write_empty(r);
    }
    if (mine) {
      const double sum = statistics.sum[r * rows.num_blocks + simt::thread()];
      s.mass[simt::thread()] = shared::block_mass(my_top, sum, top, scale);
    }
    if (simt::thread() == 0) {
      s.num_groups = 0;
      s.count = 0;
    }
    simt::sync_block();
    if (simt::thread() == 0) {
      double mass = 0.0;
      for (int32_t b = 0; b < rows.num_blocks; ++b) mass += s.mass[b];
      s.log_mass = shared::log_mass(mass);
    }
    const int32_t width = lists.width < rows.size ? lists.width : rows.size;
    choose_groups(r, width, s);
    collect(rows.row(r), width, s);
    cut(width, s);
    const int32_t count = s.count;
    for (int32_t i = simt::thread(); i < count; i += kThreads) {
      const float logprob =
          shared::candidate_logprob(shared::value_of_word(s.word[i]), top, scale, s.log_mass);
      s.word[i] = shared::rank_word(logprob, shared::token_of_word(s.word[i]));
    }
    sort(count, s);  // rounding may have made new ties
    write(r, count, s);
  }

  /// Lists the groups whose largest logit may be among the `width` best: `width` groups hold as
  /// many logits of at least their worst maximum. Three of four bytes of it are a close bound.
  TREESPEC_DEVICE void choose_groups(int64_t r, int32_t width, Shared& s) const {
    const float* group_top = statistics.group_top + r * rows.num_blocks * kGroups;
    const int32_t num_groups = rows.num_blocks * kGroups;
    uint32_t prefix = 0;  // leading bytes of the width-th maximum
    int32_t wanted = width;
    if (width <= num_groups) {
      for (int shift = 24; shift >= 8; shift -= 8) {
        for (int i = simt::thread(); i < 256; i += kThreads) s.histogram[i] = 0;
        simt::sync_block();
        for (int32_t g = simt::thread(); g < num_groups; g += kThreads) {
          const uint32_t bits = shared::falling_bits(group_top[g]);
          if (shift < 24 && bits >> (shift + 8) != prefix) continue;
          simt::atomic_add(&s.histogram[bits >> shift & 0xFFu], 1);
        }
        simt::sync_block();
        const int32_t here = simt::thread() < 256 ? s.histogram[simt::thread()] : 0;
        const auto sum = simt::block_prefix_sum<kThreads>(here, s.scratch);
        if (sum.before < wanted && wanted <= sum.before + here) {
          s.digit = static_cast<uint32_t>(simt::thread());
          s.wanted = wanted - sum.before;
        }
        simt::sync_block();
        prefix = prefix << 8 | s.digit;
        wanted = s.wanted;
      }
    }
    const uint32_t lowest = shared::falling_bits(std::numeric_limits<float>::lowest());
    uint32_t last = width <= num_groups ? prefix << 8 | 0xFFu : lowest;
    if (last > lowest) last = lowest;  // -inf is no candidate
    if (simt::thread() == 0) s.last = static_cast<uint64_t>(last) << 32 | 0xFFFFFFFFu;
    for (int32_t g = simt::thread(); g < num_groups; g += kThreads) {
      if (shared::falling_bits(group_top[g]) > last) continue;
      s.group[simt::atomic_add(&s.num_groups, 1)] = static_cast<uint16_t>(g);
    }
    simt::sync_block();
  }

  /// Gathers what is not worse than `last` from the chosen groups.
  TREESPEC_DEVICE void collect(const typename Element::Stored* row, int32_t width,
                               Shared& s) const {
    const bool aligned = rows.aligned(row);
    const int32_t num_groups = s.num_groups;
    for (int32_t first = 0; first < num_groups; first += kGroupsPerPass) {
      if (s.count > kCapacity - kPass) cut(width, s);
      const uint64_t last = s.last;
      simt::sync_block();
      const int32_t place = first + simt::thread() / kThreadsPerGroup;
      if (place < num_groups) {
        const int32_t group = s.group[place];
        const int32_t begin =
            group / kGroups * static_cast<int32_t>(kBlock) + group % kGroups * kChunk +
            simt::thread() % kThreadsPerGroup * static_cast<int32_t>(shared::kLanes);
        const auto chunk = Chunk<Element>::load(row, begin, rows.size, aligned);
        simt::unrolled<kChunk>([&](auto i) {
          const uint64_t word = shared::rank_word(chunk[i], begin + i);
          if (word <= last) s.word[simt::atomic_add(&s.count, 1)] = word;
        });
      }
      simt::sync_block();
    }
  }

  /// Sorts what was gathered and keeps the `width` best.
  TREESPEC_DEVICE void cut(int32_t width, Shared& s) const {
    const int32_t count = s.count;
    sort(count, s);
    if (simt::thread() == 0 && count >= width) {
      s.count = width;
      s.last = s.word[width - 1];
    }
    simt::sync_block();
  }

  TREESPEC_DEVICE static void sort(int32_t count, Shared& s) {
    const int32_t padded = simt::padded_to_sort(count);
    for (int32_t i = count + simt::thread(); i < padded; i += kThreads) s.word[i] = UINT64_MAX;
    simt::sort_block<kThreads>(s.word, padded, [](uint64_t a, uint64_t b) { return a < b; });
  }

  TREESPEC_DEVICE void write(int64_t r, int32_t count, const Shared& s) const {
    for (int32_t k = simt::thread(); k < lists.width; k += kThreads) {
      const bool there = k < count;
      lists.token[r * lists.width + k] = there ? shared::token_of_word(s.word[k]) : 0;
      lists.logprob[r * lists.width + k] = there ? shared::value_of_word(s.word[k]) : kLowest;
    }
  }

  TREESPEC_DEVICE void write_empty(int64_t r) const {
    for (int32_t k = simt::thread(); k < lists.width; k += kThreads) {
      lists.token[r * lists.width + k] = 0;
      lists.logprob[r * lists.width + k] = kLowest;
    }
  }
};

template <class Element>
void rank(Stream stream, const LogitRows& logits, double scale, void* workspace,
          const CandidateLists& lists, uint32_t* status) {
  const RowsView& view = logits.rows;
  const auto rows = rows_of<Element>(view, logits.rows_per_sequence, logits.num_rows);
  const int64_t num_blocks = rows.num_blocks;
  const Statistics statistics = Statistics::at(workspace, view.num_rows, num_blocks);
  constexpr int kWarps = SumBlocks<Element>::kWarps;
  simt::launch(stream, {(view.num_rows * num_blocks + kWarps - 1) / kWarps},
               SumBlocks<Element>{rows, scale, statistics});
  simt::launch(stream, {view.num_rows, 1, sizeof(typename RankRow<Element>::Shared)},
               RankRow<Element>{rows, scale, statistics, lists, status});
}

void check(const LogitRows& logits, double temperature, const CandidateLists& lists) {
  const RowsView& rows = logits.rows;
  check_logits("rank_candidates", rows);
  TREESPEC_CHECK(logits.rows_per_sequence >= 1 && rows.num_rows >= 0 &&
                     rows.num_rows % logits.rows_per_sequence == 0,
                 "rank_candidates: num_rows must be a multiple of rows_per_sequence >= 1, got ",
                 rows.num_rows, " and ", logits.rows_per_sequence);
  TREESPEC_CHECK(lists.width >= 1 && lists.width <= kMostCandidates,
                 "rank_candidates: width must be in [1, ", kMostCandidates, "], got ", lists.width);
  TREESPEC_CHECK(temperature >= 1e-6 && temperature <= 1e6,
                 "rank_candidates: temperature must be in [1e-6, 1e6], got ", temperature);
}

}  // namespace

size_t rank_candidates_workspace_bytes(int64_t num_rows, int64_t vocab_size) {
  return Statistics::bytes(num_rows, shared::num_blocks(vocab_size));
}

void rank_candidates(Stream stream, const LogitRows& logits, double temperature, void* workspace,
                     const CandidateLists& lists, uint32_t* status) {
  check(logits, temperature, lists);
  const double scale = 1.0 / temperature;
  with_element(logits.rows.dtype, [&](auto element) {
    rank<decltype(element)>(stream, logits, scale, workspace, lists, status);
  });
}

}  // namespace treespec::device
