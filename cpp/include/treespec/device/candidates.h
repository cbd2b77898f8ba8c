// SPDX-License-Identifier: Apache-2.0
// From a drafter's raw logits to ranked candidate lists, on the device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "treespec/array_view.h"
#include "treespec/stream.h"

namespace treespec::device {

/// Logits of a batch in device memory: `rows.num_rows` is batch * rows_per_sequence.
struct LogitRows {
  RowsView rows;  ///< float32, float16 or bfloat16; V at most 2^18; any stride and alignment
  int32_t rows_per_sequence = 1;
  /// [batch]: rows from num_rows[b] on are not read, their lists are empty; null: all are read.
  const int32_t* num_rows = nullptr;
};

/// Ranked lists `[num_rows, width]` in device memory; an empty entry has token 0, logprob -inf.
struct CandidateLists {
  int32_t width = 0;
  int32_t* token = nullptr;
  float* logprob = nullptr;
};

/// Widest lists of rank_candidates.
constexpr int32_t kMostCandidates = 1024;

size_t rank_candidates_workspace_bytes(int64_t num_rows, int64_t vocab_size);

/// The `lists.width` likeliest tokens of every row under softmax(logits / temperature), with the
/// bits of treespec::rank_candidates: a launch that reads the logits once and one that looks again
/// where candidates can be. Width in [1, kMostCandidates], temperature in [1e-6, 1e6], else
/// InvalidArgument. `status` [batch]: kNotANumber for NaN or +inf, kEmptyRow for a row without a
/// finite logit; the lists of such rows are empty.
void rank_candidates(Stream stream, const LogitRows& logits, double temperature, void* workspace,
                     const CandidateLists& lists, uint32_t* status);

}  // namespace treespec::device
