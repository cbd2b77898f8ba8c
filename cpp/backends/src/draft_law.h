// SPDX-License-Identifier: Apache-2.0
// The law that a drafter's tree is ranked by or drawn from.
#pragma once

#include <cstdint>
#include <vector>

#include "treespec/array_view.h"
#include "treespec/decoder.h"
#include "treespec/exported_model.h"
#include "treespec/sampling.h"
#include "treespec/source.h"

namespace treespec::exported {

/// Temperature, top-k and top-p of a draft; the rest is off. Trees of likeliest tokens are ranked
/// by the model's own law, sampled ones drawn from what is closest to the target's.
SamplingParams draft_law(const DraftRequest& request, const ExportedDraftOptions& options);

inline bool truncates(const SamplingParams& law) { return law.top_k > 0 || law.top_p < 1.0; }

/// Candidate rows from logits, and the memory behind them.
class LawRows {
 public:
  /// Drops the rows there are.
  void restart(const SamplingParams& law);
  /// Appends the law of every row of logits.
  void append(const RowsView& logits);
  /// Valid until the next restart.
  ArrayView<const CandidateRow> rows();

 private:
  void append_truncated(const RowsView& logits, int64_t row);

  SamplingParams law_;
  std::vector<float> logprob_;  // of all rows
  std::vector<int32_t> token_;  // of truncated rows; whole ones need none
  std::vector<int64_t> end_;    // of each row in both
  std::vector<CandidateRow> rows_;
  TargetRow row_;
};

}  // namespace treespec::exported
