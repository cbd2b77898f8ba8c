// SPDX-License-Identifier: Apache-2.0
#include "draft_law.h"

#include <cmath>

#include "treespec/candidates.h"

namespace treespec::exported {

SamplingParams draft_law(const DraftRequest& request, const ExportedDraftOptions& options) {
  const SamplingParams& wanted = request.sampling;
  const bool sampled = request.proposal != Proposal::kDeterministic && wanted.temperature > 0.0;
  SamplingParams law;
  law.temperature = options.temperature.value_or(sampled ? wanted.temperature : 1.0);
  if (sampled) {
    law.top_k = wanted.top_k;
    law.top_p = wanted.top_p;
  }
  return law;
}

void LawRows::restart(const SamplingParams& law) {
  law_ = law;
  logprob_.clear();
  token_.clear();
  end_.clear();
}

void LawRows::append(const RowsView& logits) {
  for (int64_t row = 0; truncates(law_) && row < logits.num_rows; ++row) {
    append_truncated(logits, row);
  }
  if (truncates(law_)) return;
  const size_t size = logprob_.size();
  logprob_.resize(size + static_cast<size_t>(logits.num_rows * logits.width));
  log_probs(logits, law_.temperature, logprob_.data() + size);
  for (int64_t row = 1; row <= logits.num_rows; ++row) {
    end_.push_back(static_cast<int64_t>(size) + row * logits.width);
  }
}

void LawRows::append_truncated(const RowsView& logits, int64_t row) {
  constexpr int64_t kBlock = 4096;  // what TargetRow::units wants
  process_logits(logits, row, law_, {}, {}, nullptr, {}, row_);
  const double log_mass = std::log(row_.mass());
  double buffer[kBlock];
  for (int64_t block = 0; block < row_.num_blocks(); ++block) {
    const TargetRow::Units units = row_.units(block, buffer);
    for (int64_t i = 0; i < units.unit.size(); ++i) {
      const double weight = units.scale * units.unit[i];
      if (!(weight > 0.0)) continue;
      token_.push_back(units.token_of(i));
      logprob_.push_back(static_cast<float>(std::fmin(std::log(weight) - log_mass, 0.0)));
    }
  }
  end_.push_back(static_cast<int64_t>(logprob_.size()));
}

ArrayView<const CandidateRow> LawRows::rows() {
  rows_.clear();
  int64_t begin = 0;
  for (const int64_t end : end_) {
    CandidateRow row;
    row.token = truncates(law_) ? token_.data() + begin : nullptr;
    row.logprob = logprob_.data() + begin;
    row.size = static_cast<int32_t>(end - begin);
    rows_.push_back(row);
    begin = end;
  }
  return rows_;
}

}  // namespace treespec::exported
