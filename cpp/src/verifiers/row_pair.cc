// SPDX-License-Identifier: Apache-2.0
#include "verifiers/row_pair.h"

#include <utility>

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
  draft_sum_ = 0;
  if (tree.draws(node).empty() || law.empty()) return;
  draft_.resize(size);
  law.load(node, static_cast<int32_t>(size), draft_.data());
  draft_sum_ = row::fixed_sum(draft_.data(), width);
}

double RowPair::acceptance(int32_t token, double weight) const {
  const double target_mass = weight * target_[token] * shared::from_fixed(draft_sum_);
  const double draft_mass = draft_[token] * shared::from_fixed(target_sum_);
  return target_mass < draft_mass ? target_mass / draft_mass : 1.0;
}

bool RowPair::accepts(int32_t token, double u, double weight) const {
  return u * draft_[token] * shared::from_fixed(target_sum_) <
         weight * target_[token] * shared::from_fixed(draft_sum_);
}

double RowPair::reject(double weight) {
  const auto width = static_cast<int64_t>(target_.size());
  const uint64_t left =
      row::residual(target_.data(), draft_.data(), width, weight / shared::from_fixed(target_sum_),
                    1.0 / shared::from_fixed(draft_sum_));
  if (left > 0) return normalise_target(left);
  if (weight == 1.0) {
    target_ = draft_;
    target_sum_ = draft_sum_;
  }
  return 0.0;
}

double RowPair::subtract(double gamma, double rho) {
  const auto width = static_cast<int64_t>(target_.size());
  const uint64_t left = row::subtract_overlap(target_.data(), draft_.data(), width,
                                              1.0 / shared::from_fixed(target_sum_),
                                              1.0 / shared::from_fixed(draft_sum_), gamma, rho);
  return left > 0 ? normalise_target(left) : 0.0;
}

double RowPair::normalise_target(uint64_t mass) {
  const auto width = static_cast<int64_t>(target_.size());
  row::scale(target_.data(), width, 1.0 / shared::from_fixed(mass));
  target_sum_ = row::fixed_sum(target_.data(), width);
  return shared::from_fixed(mass);
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

void RowPair::replace_draft(std::vector<double> law) {
  draft_ = std::move(law);
  draft_sum_ = row::fixed_sum(draft_.data(), static_cast<int64_t>(draft_.size()));
}

void RowPair::gather_support(std::vector<int32_t>& token, std::vector<double>& target_probs,
                             std::vector<double>& draft_probs) const {
  token.clear();
  target_probs.clear();
  draft_probs.clear();
  for (int32_t t = 0; t < vocab_size(); ++t) {
    if (!(draft_[t] > 0.0)) continue;
    token.push_back(t);
    target_probs.push_back(target(t));
    draft_probs.push_back(draft(t));
  }
}

int32_t RowPair::sample(double u) const { return inverse_cdf(target_, u); }

}  // namespace treespec
