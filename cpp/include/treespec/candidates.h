// SPDX-License-Identifier: Apache-2.0
// From a drafter's raw logits to what builders read: ranked candidate lists, in one pass over
// memory, or whole rows.
#pragma once

#include <cstdint>

#include "treespec/array_view.h"

namespace treespec {

/// The `width` likeliest tokens of every row of `logits` (any float dtype), ranked, with their
/// log-probabilities under softmax(logits / temperature): `token`, `logprob` are
/// `[num_rows, width]`. Missing ones (-inf logits, V < width) pad with logprob -inf. Exponentials
/// are float32, summed in a fixed order, so that every machine gives the same bits; a
/// log-probability is within 2e-6 of the exact one. Throws InvalidArgument for NaN, +inf, and a row
/// without a finite logit.
void rank_candidates(const RowsView& logits, int32_t width, double temperature, int32_t* token,
                     float* logprob);

/// The log-probabilities of all tokens under the same law, `[num_rows, V]`: what an Expander gives.
void log_probs(const RowsView& logits, double temperature, float* logprob);

}  // namespace treespec
