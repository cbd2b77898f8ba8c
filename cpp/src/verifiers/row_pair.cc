// SPDX-License-Identifier: Apache-2.0
#include "verifiers/row_pair.h"

#include "row_ops.h"
#include "shared/fixed_point.hd.h"

namespace treespec {

void RowPair::load(const TokenTree& tree, int32_t node, TargetRows& target_rows,
                   const DraftLaw& law) {
  const auto size = static_cast<size_t>(target_rows.vocab_size());
  target_.resize(size);
  target_rows.load(node, target_.data());
  // Raw weights may sum to V: bring them to mass 1 so that the 2^60 sums keep their precision.
  const auto width = static_cast<int64_t>(size);
  const double mass = shared::from_raw_fixed(row::raw_fixed_sum(target_.data(), width));
  row::scale(target_.data(), width, 1.0 / mass);
  target_sum_ = row::fixed_sum(target_.data(), width);
  if (tree.draws(node).empty()) return;
  draft_.resize(size);
  law.load(node, static_cast<int32_t>(size), draft_.data());
  draft_sum_ = row::fixed_sum(draft_.data(), width);
}

bool RowPair::accepts(int32_t token, double u) const {
  return u * draft_[token] * shared::from_fixed(target_sum_) <
         target_[token] * shared::from_fixed(draft_sum_);
}

bool RowPair::reject() {
  const auto width = static_cast<int64_t>(target_.size());
  const uint64_t left =
      row::residual(target_.data(), draft_.data(), width, 1.0 / shared::from_fixed(target_sum_),
                    1.0 / shared::from_fixed(draft_sum_));
  if (left == 0) return false;
  row::scale(target_.data(), width, 1.0 / shared::from_fixed(left));
  target_sum_ = row::fixed_sum(target_.data(), width);
  return true;
}

void RowPair::remove(int32_t token) {
  // Below this the 2^60 sum has too few bits left for the rest of a nearly certain law.
  constexpr uint64_t kTooSmall = uint64_t{1} << 50;
  draft_sum_ -= static_cast<uint64_t>(shared::to_fixed(draft_[token]));
  draft_[token] = 0.0;
  if (draft_sum_ < kTooSmall) renormalise_draft();
}

void RowPair::renormalise_draft() {
  const auto width = static_cast<int64_t>(draft_.size());
  const double largest = draft_[row::argmax(draft_.data(), width)];
  draft_sum_ = 0;
  if (!(largest > 0.0)) return;
  row::scale(draft_.data(), width, 1.0 / largest);
  const double mass = shared::from_raw_fixed(row::raw_fixed_sum(draft_.data(), width));
  row::scale(draft_.data(), width, 1.0 / mass);
  draft_sum_ = row::fixed_sum(draft_.data(), width);
}

int32_t RowPair::sample(double u) const { return inverse_cdf(target_, u); }

}  // namespace treespec
