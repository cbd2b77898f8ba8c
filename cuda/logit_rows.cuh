// SPDX-License-Identifier: Apache-2.0
// Rows of logits as kernels read them: one warp takes a block of 4096, each thread eight neighbours
// out of every 256, all in registers, and sums its exponentials with the bits of the CPU.
#pragma once

#include <cstring>
#include <limits>
#include <simt.cuh>
#include <type_traits>

#include "block_reduce.cuh"
#include "shared/block_sum.hd.h"
#include "shared/half.hd.h"
#include "treespec/array_view.h"
#include "treespec/error.h"
#include "unrolled.cuh"

namespace treespec::device {

constexpr int64_t kBlock = shared::kBlock;
constexpr int32_t kMostVocab = 1 << 18;
constexpr int32_t kMostBlocks = kMostVocab / kBlock;
constexpr int kChunk = 8;  // neighbouring logits of a thread: 16 bytes of half precision
constexpr int kSteps = kBlock / shared::kLanes;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

static_assert(shared::kLanes == kChunk * simt::kWarpSize);

/// Element types, as they lie in memory.
struct Float32 {
  using Stored = float;
  TREESPEC_DEVICE static float value(float x) { return x; }
};
struct Float16 {
  using Stored = uint16_t;
  TREESPEC_DEVICE static float value(uint16_t bits) { return shared::float16_to_float(bits); }
};
struct BFloat16 {
  using Stored = uint16_t;
  TREESPEC_DEVICE static float value(uint16_t bits) { return shared::bfloat16_to_float(bits); }
};

/// Neighbouring elements of a row.
template <class Element>
struct Chunk {
  using Stored = typename Element::Stored;
  static constexpr int kLoads = kChunk * sizeof(Stored) / 16;
  Stored element[kChunk];

  TREESPEC_DEVICE float operator[](int i) const { return Element::value(element[i]); }

  /// Elements first ... first + kChunk of a row; those from `size` on are not read: -inf.
  TREESPEC_DEVICE static Chunk load(const Stored* row, int32_t first, int32_t size, bool aligned) {
    Chunk chunk;
    if (aligned && first + kChunk <= size) {
      simt::Words4 words[kLoads];
      simt::unrolled<kLoads>([&](auto i) {
        words[i] = simt::load_16_bytes(reinterpret_cast<const char*>(row + first) + 16 * i);
      });
      memcpy(chunk.element, words, sizeof words);
    } else {
      simt::unrolled<kChunk>(
          [&](auto i) { chunk.element[i] = first + i < size ? row[first + i] : lowest(); });
    }
    return chunk;
  }

 private:
  TREESPEC_DEVICE static Stored lowest() {
    if constexpr (std::is_same_v<Element, Float32>) return kLowest;
    return static_cast<Stored>(std::is_same_v<Element, Float16> ? 0xFC00u : 0xFF80u);
  }
};

/// The rows, as a kernel reads them.
template <class Element>
struct Rows {
  using Stored = typename Element::Stored;
  const Stored* data;
  int64_t num_rows, row_stride;
  int32_t size;  // of a row
  int32_t num_blocks;
  int32_t rows_per_sequence;
  const int32_t* rows_of_sequence;

  TREESPEC_DEVICE bool given(int64_t row) const {
    return rows_of_sequence == nullptr ||
           row % rows_per_sequence < rows_of_sequence[row / rows_per_sequence];
  }
  TREESPEC_DEVICE const Stored* row(int64_t r) const { return data + r * row_stride; }
  /// Blocks of a row are aligned if the row is.
  TREESPEC_DEVICE static bool aligned(const Stored* row) {
    return reinterpret_cast<uintptr_t>(row) % 16 == 0;
  }
};

/// The rows of a batch, `per_sequence` each, as kernels read them.
template <class Element>
Rows<Element> rows_of(const RowsView& view, int32_t per_sequence, const int32_t* counts) {
  return {static_cast<const typename Element::Stored*>(view.data),
          view.num_rows,
          view.row_stride,
          static_cast<int32_t>(view.width),
          static_cast<int32_t>(shared::num_blocks(view.width)),
          per_sequence,
          counts};
}

/// run(Element) for the type of checked logits.
template <class Run>
void with_element(DType dtype, const Run& run) {
  switch (dtype) {
    case DType::kFloat16:
      return run(Float16{});
    case DType::kBFloat16:
      return run(BFloat16{});
    default:
      return run(Float32{});
  }
}

/// Throws InvalidArgument for logits that no kernel reads.
inline void check_logits(const char* who, const RowsView& rows) {
  TREESPEC_CHECK(rows.dtype != DType::kFloat64, who,
                 ": logits must be float32, float16 or bfloat16 on a device");
  TREESPEC_CHECK(rows.width >= 1 && rows.width <= kMostVocab, who, ": V must be in [1, ",
                 kMostVocab, "], got ", rows.width);
}

/// Sum of the lanes of a block, eight held by each thread, as shared::lane_tree; every thread gets
/// it.
TREESPEC_DEVICE double warp_lane_tree(const double* lane) {
  double sum = shared::lane_tree<kChunk>(lane);
  for (int distance = 1; distance < simt::kWarpSize; distance *= 2) {
    sum += simt::shuffle_xor(sum, distance);
  }
  return sum;
}

/// Place in its block of an entry of this thread.
TREESPEC_DEVICE int32_t place_of(int step, int i) {
  return step * static_cast<int32_t>(shared::kLanes) + simt::lane() * kChunk + i;
}

/// A block of a row in the registers of a warp.
template <class Element>
struct LogitBlock {
  Chunk<Element> chunk[kSteps];

  /// `begin`: first entry of the block. Entries beyond the row are -inf.
  TREESPEC_DEVICE void load(const typename Element::Stored* row, int32_t begin, int32_t size) {
    const bool aligned = Rows<Element>::aligned(row);
    simt::unrolled<kSteps>([&](auto step) {
      const int32_t first = begin + step * static_cast<int32_t>(shared::kLanes);
      chunk[step] = Chunk<Element>::load(row, first + simt::lane() * kChunk, size, aligned);
    });
  }

  /// Largest of this thread's entries.
  TREESPEC_DEVICE float own_top() const {
    float top = kLowest;
    simt::unrolled<kSteps>([&](auto step) {
      simt::unrolled<kChunk>([&](auto i) { top = chunk[step][i] > top ? chunk[step][i] : top; });
    });
    return top;
  }
  /// Whether one of this thread's entries is NaN.
  TREESPEC_DEVICE bool has_nan() const {
    bool found = false;
    simt::unrolled<kSteps>([&](auto step) {
      simt::unrolled<kChunk>([&](auto i) { found |= chunk[step][i] != chunk[step][i]; });
    });
    return found;
  }
  /// Sum over the block of exp(scale * (x - top)), as the CPU's row::exp_sum; every lane gets it.
  /// Entry i of a step counts unless bit i of `left_out[step]` is set. `scale`: 1 / temperature.
  TREESPEC_DEVICE double exp_sum(float top, double scale, const uint8_t* left_out) const {
    double lane[kChunk];
    simt::unrolled<kChunk>([&](auto i) {
      float sum = 0.0f;
      simt::unrolled<kSteps>([&](auto step) {
        const bool counts = (left_out[step] >> i & 1) == 0;
        sum += counts ? shared::exp_unit(chunk[step][i], top, scale) : 0.0f;
      });
      lane[i] = static_cast<double>(sum);
    });
    return warp_lane_tree(lane);
  }

  /// Lowest place in the block of this thread's entries that equal `value`; kBlock: none.
  TREESPEC_DEVICE int32_t first_equal(float value) const {
    auto first = static_cast<int32_t>(kBlock);
    simt::unrolled<kSteps>([&](auto step) {
      simt::unrolled<kChunk>([&](auto i) {
        const int32_t place = place_of(step, i);
        if (chunk[step][i] == value && place < first) first = place;
      });
    });
    return first;
  }
};

/// What LogitBlock offers, of scores that are worked out when they are asked for: `score(token)`.
/// For rows of which few are read.
template <class Score>
class ComputedBlock {
 public:
  /// `begin`: token of the first entry; `end`: behind the last one.
  TREESPEC_DEVICE ComputedBlock(int32_t begin, int32_t end, const Score& score)
      : begin_(begin), end_(end), score_(score) {}

  TREESPEC_DEVICE float own_top() const {
    float top = kLowest;
    for_all([&](int32_t, float x) { top = x > top ? x : top; });
    return top;
  }
  TREESPEC_DEVICE bool has_nan() const {
    bool found = false;
    for_all([&](int32_t, float x) { found |= x != x; });
    return found;
  }
  TREESPEC_DEVICE int32_t first_equal(float value) const {
    auto first = static_cast<int32_t>(kBlock);
    for_all([&](int32_t place, float x) {
      if (x == value && place < first) first = place;
    });
    return first;
  }
  TREESPEC_DEVICE double exp_sum(float top, double scale, const uint8_t* left_out) const {
    double lane[kChunk];
    for (int i = 0; i < kChunk; ++i) {
      float sum = 0.0f;
      for (int32_t step = 0; step < kSteps; ++step) {
        const int32_t token = begin_ + place_of(step, i);
        const bool counts = token < end_ && (left_out[step] >> i & 1) == 0;
        if (counts) sum += shared::exp_unit(score_(token), top, scale);
      }
      lane[i] = static_cast<double>(sum);
    }
    return warp_lane_tree(lane);
  }

 private:
  template <class Visit>
  TREESPEC_DEVICE void for_all(const Visit& visit) const {
    for (int32_t e = 0; e < kSteps * kChunk; ++e) {
      const int32_t place = place_of(e / kChunk, e % kChunk);
      if (begin_ + place < end_) visit(place, score_(begin_ + place));
    }
  }

  int32_t begin_, end_;
  const Score& score_;
};

}  // namespace treespec::device
