// SPDX-License-Identifier: Apache-2.0
// From a drafter's raw logits to ranked candidate lists, and to linked ones, on the device.
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

/// The arrays of a ListSource of kind kTransitions, `[batch, depth, num_rows, width]`.
struct TransitionLists {
  int32_t batch = 0;
  int32_t depth = 0;
  int32_t num_rows = 0;  ///< at most kMostTransitionRows
  int32_t width = 0;     ///< at most kMostCandidates
  int32_t* token = nullptr;
  float* logprob = nullptr;
  int32_t* next = nullptr;
};

/// Most lists of a level that link_transitions takes.
constexpr int32_t kMostTransitionRows = 1024;

/// treespec::link_transitions for a batch, in one launch: `lists`
/// `[batch, 1 + (depth - 1) * num_rows, width]`, `owner` `[batch, depth - 1, num_rows]`, sizes
/// those of `linked`. Any data will do, hence no status. InvalidArgument: sizes out of range.
void link_transitions(Stream stream, const CandidateLists& lists, const int32_t* owner,
                      const TransitionLists& linked);

}  // namespace treespec::device
