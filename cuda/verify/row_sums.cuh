// SPDX-License-Identifier: Apache-2.0
// Tops and sums of the blocks of rows, which a walk starts from instead of reading rows again.
#pragma once

#include "logit_rows.cuh"
#include "score_changes.cuh"
#include "tree.cuh"
#include "treespec/device/verify.h"

namespace treespec::device {

/// Sums of the blocks of all rows, in the workspace.
struct RowSums {
  double* sum;   // [num_rows, num_blocks], of the units, without the tokens of the law
  double* kept;  // [num_rows, num_blocks], the same of what truncation keeps; of visited rows
  float* top;    // [num_rows, num_blocks]; NaN if the block has one
  int32_t* arg;  // [num_rows, num_blocks], first entry of the block that equals `top`

  static size_t bytes(int64_t num_rows, int64_t num_blocks) {
    return static_cast<size_t>(num_rows * num_blocks) *
           (2 * sizeof(double) + sizeof(float) + sizeof(int32_t));
  }
  static RowSums at(void* workspace, int64_t num_rows, int64_t num_blocks) {
    const int64_t size = num_rows * num_blocks;
    auto* sum = static_cast<double*>(workspace);
    auto* top = reinterpret_cast<float*>(sum + 2 * size);
    return {sum, sum + size, top, reinterpret_cast<int32_t*>(top + size)};
  }
};

/// At which temperature the rows of a sequence are weighed; 0: only the likeliest token counts.
struct Temperatures {
  const Sampling* sampling;
  bool greedy;  // whatever the sampling says
  TREESPEC_DEVICE double of(int32_t b) const { return greedy ? 0.0 : sampling[b].temperature; }
};

/// The entries of a node's law.
struct LawRow {
  const int32_t* token = nullptr;  // null: entry i is token i
  const float* prob = nullptr;
  int32_t size = 0;
  bool sound = true;  // false: the row is longer than the envelope, or not there

  TREESPEC_DEVICE int32_t token_of(int32_t i) const { return token != nullptr ? token[i] : i; }

  /// First entry at or above `wanted`.
  TREESPEC_DEVICE int32_t lower_bound(int32_t wanted) const {
    if (token == nullptr) return wanted < size ? wanted : size;
    int32_t low = 0, high = size;
    while (low < high) {
      const int32_t middle = (low + high) / 2;
      if (token[middle] < wanted) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  /// Of a node that drew; `node` counts through the batch.
  TREESPEC_DEVICE static LawRow of(const DraftLaw& law, int64_t node) {
    LawRow out;
    const int32_t row = law.row_of_node[node];
    out.sound = row >= 0;
    if (!out.sound) return out;
    if (law.token == nullptr) {
      out.prob = law.prob + row * law.row_stride;
      out.size = law.vocab_size;
      return out;
    }
    const int64_t begin = law.row_offset[row];
    const int64_t size = law.row_offset[row + 1] - begin;
    out.sound = size >= 0 && size <= law.max_support;
    if (!out.sound) return out;
    out.token = law.token + begin;
    out.prob = law.prob + begin;
    out.size = static_cast<int32_t>(size);
    return out;
  }
};

constexpr int kMarkWords = kBlock / 32;  // a bit per entry of a block

/// Sets the bits of this thread's entries that the law lists; `bits`: kMarkWords of shared memory
/// of the warp's own.
TREESPEC_DEVICE void mark_law(const LawRow& row, int32_t begin, uint32_t* bits, uint8_t* left_out) {
  for (int w = simt::lane(); w < kMarkWords; w += simt::kWarpSize) bits[w] = 0;
  simt::sync_warp();
  const int32_t end = row.lower_bound(begin + static_cast<int32_t>(kBlock));
  for (int32_t e = row.lower_bound(begin) + simt::lane(); e < end; e += simt::kWarpSize) {
    const int32_t place = row.token_of(e) - begin;
    if (place < 0 || place >= kBlock) continue;  // a row that does not ascend
    simt::atomic_or(&bits[place / 32], 1u << (place % 32));
  }
  simt::sync_warp();
  simt::unrolled<kSteps>([&](auto step) {
    const int place = step * static_cast<int>(shared::kLanes) + simt::lane() * kChunk;
    left_out[step] = static_cast<uint8_t>(bits[place / 32] >> (place % 32) & 0xFFu);
  });
}

TREESPEC_DEVICE bool keeps_few(const Sampling& sampling, int32_t vocab_size) {
  return sampling.top_k > 0 && sampling.top_k < vocab_size;
}
TREESPEC_DEVICE bool is_truncated(const Sampling& sampling, int32_t vocab_size) {
  return keeps_few(sampling, vocab_size) || sampling.top_p < 1.0 || sampling.min_p > 0.0;
}

/// Rows and what becomes of them before they are summed.
struct RowsToSum {
  RowsView logits;  // [batch * max_nodes, V]
  Trees trees;
  DraftLaw law;  // row_of_node null: nothing is left out
  Temperatures temperatures;
  ScoreChanges changes;
  const uint32_t* use_table;  // of count_history; null: none
};

/// The one pass over all logits, in one launch: tops and sums of the blocks of every row, what the
/// draft law of a node lists left out of the sums, since the walk keeps these tokens one by one.
void sum_rows(Stream stream, const RowsToSum& input, const RowSums& out);

}  // namespace treespec::device
