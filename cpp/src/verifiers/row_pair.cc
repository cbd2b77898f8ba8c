// SPDX-License-Identifier: Apache-2.0
#include "verifiers/row_pair.h"

#include <algorithm>

#include "row_ops.h"
#include "shared/block_sum.hd.h"
#include "shared/fixed_point.hd.h"

namespace treespec {
namespace {

int64_t size_of(const std::vector<double>& values) { return static_cast<int64_t>(values.size()); }

}  // namespace

void RowPair::load(const TokenTree& tree, int32_t node, TargetRows& target_rows,
                   const DraftLaw& law) {
  token_.clear();
  draft_.clear();
  if (!tree.draws(node).empty() && !law.empty()) law.load(node, token_, draft_);
  draft_sum_ = row::fixed_sum(draft_.data(), size_of(draft_));
  target_rows.load(node, token_, row_);
  target_.assign(row_.without_weight().begin(), row_.without_weight().end());
  // Raw weights may sum to V: bring them to mass 1 so that the 2^60 sums keep their precision.
  const double rest = row_.mass();
  const double mass =
      rest + shared::from_raw_fixed(row::raw_fixed_sum(target_.data(), size_of(target_)));
  rest_scale_ = 1.0 / mass;
  rest_mass_ = rest * rest_scale_;
  row::scale(target_.data(), size_of(target_), rest_scale_);
  target_sum_ = row::fixed_sum(target_.data(), size_of(target_));
}

int32_t RowPair::find(int32_t token) const {
  const auto at = std::lower_bound(token_.begin(), token_.end(), token);
  return at != token_.end() && *at == token ? static_cast<int32_t>(at - token_.begin()) : -1;
}

double RowPair::target(int32_t token) const {
  const int32_t at = find(token);
  return (at >= 0 ? target_[at] : rest_scale_ * row_.weight(token)) / target_mass();
}

double RowPair::draft(int32_t token) const {
  const int32_t at = find(token);
  return at >= 0 ? draft_[at] / shared::from_fixed(draft_sum_) : 0.0;
}

bool RowPair::drawable(int32_t token) const {
  const int32_t at = find(token);
  return draft_sum_ > 0 && at >= 0 && draft_[at] > 0.0;
}

double RowPair::acceptance(int32_t token, double weight) const {
  const int32_t at = find(token);
  const double target_side = weight * target_[at] * shared::from_fixed(draft_sum_);
  const double draft_side = draft_[at] * target_mass();
  return target_side < draft_side ? target_side / draft_side : 1.0;
}

bool RowPair::accepts(int32_t token, double u, double weight) const {
  const int32_t at = find(token);
  return u * draft_[at] * target_mass() < weight * target_[at] * shared::from_fixed(draft_sum_);
}

double RowPair::reject(double weight) {
  const double target_scale = weight / target_mass();
  target_sum_ = row::residual(target_.data(), draft_.data(), size_of(target_), target_scale,
                              1.0 / shared::from_fixed(draft_sum_));
  const double left = normalise_target(target_scale);
  if (left > 0.0 || weight != 1.0) return left;
  target_ = draft_;
  target_sum_ = draft_sum_;
  return 0.0;
}

double RowPair::subtract(double gamma, double rho) {
  const double target_scale = 1.0 / target_mass();
  target_sum_ = row::subtract_overlap(target_.data(), draft_.data(), size_of(target_), target_scale,
                                      1.0 / shared::from_fixed(draft_sum_), gamma, rho);
  return normalise_target(target_scale);
}

double RowPair::overlap(double rho) const {
  return shared::from_fixed(row::overlap(target_.data(), draft_.data(), size_of(target_),
                                         1.0 / target_mass(), 1.0 / shared::from_fixed(draft_sum_),
                                         rho));
}

double RowPair::normalise_target(double rest_factor) {
  rest_scale_ *= rest_factor;
  rest_mass_ *= rest_factor;
  const double left = target_mass();
  if (!(left > 0.0)) return 0.0;
  const double factor = 1.0 / left;
  rest_scale_ *= factor;
  rest_mass_ *= factor;
  row::scale(target_.data(), size_of(target_), factor);
  target_sum_ = row::fixed_sum(target_.data(), size_of(target_));
  return left;
}

void RowPair::remove(int32_t token) {
  // Below this the 2^60 sum has too few bits left for the rest of a nearly certain law.
  constexpr uint64_t kTooSmall = uint64_t{1} << 50;
  double& probability = draft_[find(token)];
  draft_sum_ -= static_cast<uint64_t>(shared::to_fixed(probability));
  probability = 0.0;
  if (draft_sum_ < kTooSmall) renormalise_draft();
}

void RowPair::renormalise_draft() {
  const int64_t size = size_of(draft_);
  const double largest = row::max(draft_.data(), size);
  draft_sum_ = 0;
  if (!(largest > 0.0)) return;
  row::scale(draft_.data(), size, 1.0 / largest);
  const double mass = shared::from_raw_fixed(row::raw_fixed_sum(draft_.data(), size));
  row::scale(draft_.data(), size, 1.0 / mass);
  draft_sum_ = row::fixed_sum(draft_.data(), size);
}

void RowPair::replace_draft(const std::vector<double>& law) {
  draft_ = law;
  draft_sum_ = row::fixed_sum(draft_.data(), size_of(draft_));
}

void RowPair::normalised(std::vector<double>& target, std::vector<double>& draft) const {
  target.clear();
  draft.clear();
  for (size_t i = 0; i < token_.size(); ++i) {
    target.push_back(target_[i] / target_mass());
    draft.push_back(draft_[i] / shared::from_fixed(draft_sum_));
  }
}

int32_t RowPair::sample(double u) const {
  // Inverse CDF over the blocks, then over the tokens of one block, both in ascending order.
  std::vector<uint64_t> sum;
  std::vector<int64_t> from{0};  // of the support, by block
  uint64_t total = 0;
  for (int64_t b = 0; b < row_.num_blocks(); ++b) {
    const auto end =
        std::lower_bound(token_.begin() + from.back(), token_.end(), (b + 1) * shared::kBlock);
    from.push_back(end - token_.begin());
    sum.push_back(block_sum(b, from[b], from[b + 1]));
    total += sum.back();
  }
  uint64_t offset = shared::share_of(u, total);
  int64_t block = 0;
  while (offset >= sum[block]) offset -= sum[block++];
  return sample_block(block, from[block], from[block + 1], sum[block], offset);
}

uint64_t RowPair::block_sum(int64_t block, int64_t from, int64_t to) const {
  const auto rest = static_cast<uint64_t>(shared::to_fixed(rest_scale_ * row_.block_mass(block)));
  return rest + row::fixed_sum(target_.data() + from, to - from);
}

int32_t RowPair::sample_block(int64_t block, int64_t from, int64_t to, uint64_t mass,
                              uint64_t offset) const {
  double buffer[shared::kBlock];
  const TargetRow::Units units = row_.units(block, buffer);
  const double unit_share = rest_scale_ * units.scale / shared::from_fixed(mass);
  const double support_share = 1.0 / shared::from_fixed(mass);
  // The tokens of the rest and of the support, merged; the latter override.
  const auto visit = [&](auto&& take) {
    int64_t s = from;
    for (int64_t i = 0; i < units.unit.size(); ++i) {
      const int32_t token = units.token_of(i);
      for (; s < to && token_[s] < token; ++s) {
        if (take(token_[s], target_[s] * support_share)) return;
      }
      const bool overridden = s < to && token_[s] == token;
      const double share = overridden ? target_[s++] * support_share : units.unit[i] * unit_share;
      if (take(token, share)) return;
    }
    for (; s < to; ++s) {
      if (take(token_[s], target_[s] * support_share)) return;
    }
  };
  uint64_t total = 0;
  visit([&](int32_t, double share) {
    total += static_cast<uint64_t>(shared::to_fixed(share));
    return false;
  });
  const uint64_t threshold = shared::rescale(offset, mass, total);
  uint64_t cumulative = 0;
  int32_t drawn = -1;
  visit([&](int32_t token, double share) {
    const int64_t weight = shared::to_fixed(share);
    if (weight > 0) drawn = token;
    cumulative += static_cast<uint64_t>(weight);
    return cumulative > threshold;
  });
  return drawn;
}

}  // namespace treespec
