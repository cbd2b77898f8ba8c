// SPDX-License-Identifier: Apache-2.0
// The ceiling of one-level acceptance.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "treespec/error.h"
#include "treespec/verifier.h"

namespace treespec {
namespace {

/// 1 + min over H of p(H) - q(H)^k; the best H is a prefix of the tokens by rising p / q.
double alpha_of_iid(ArrayView<const double> p, ArrayView<const double> q, int32_t k) {
  std::vector<int32_t> order;
  for (int32_t t = 0; t < static_cast<int32_t>(q.size()); ++t) {
    if (q[t] > 0.0) order.push_back(t);
  }
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    const double left = p[a] * q[b], right = p[b] * q[a];
    return left != right ? left < right : a < b;
  });
  double least = 0.0, p_mass = 0.0, q_mass = 0.0;
  for (const int32_t t : order) {
    p_mass += p[t];
    q_mass += q[t];
    least = std::min(least, p_mass - std::pow(std::min(q_mass, 1.0), k));
  }
  return std::clamp(1.0 + least, 0.0, 1.0);
}

/// p of the k - 1 likeliest tokens and min(p, q') of the rest, q' the draft law without them.
double alpha_of_top_plus_one(ArrayView<const double> p, ArrayView<const double> q, int32_t k) {
  std::vector<int32_t> order(static_cast<size_t>(q.size()));
  std::iota(order.begin(), order.end(), 0);
  const auto top = std::min<std::ptrdiff_t>(k - 1, order.end() - order.begin());
  std::partial_sort(order.begin(), order.begin() + top, order.end(),
                    [&](int32_t a, int32_t b) { return q[a] != q[b] ? q[a] > q[b] : a < b; });
  double alpha = 0.0, rest = 0.0;
  for (auto at = order.begin(); at != order.begin() + top; ++at)
    alpha += q[*at] > 0.0 ? p[*at] : 0.0;
  for (auto at = order.begin() + top; at != order.end(); ++at) rest += q[*at];
  for (auto at = order.begin() + top; rest > 0.0 && at != order.end(); ++at) {
    alpha += std::min(p[*at], q[*at] / rest);
  }
  return std::min(alpha, 1.0);
}

void check_law(const char* which, ArrayView<const double> row) {
  double sum = 0.0;
  bool sound = true;
  for (const double p : row) {
    sound &= p >= 0.0;  // false for NaN
    sum += p;
  }
  TREESPEC_CHECK(sound && std::abs(sum - 1.0) <= 1e-3, "alpha_star: ", which,
                 " must be a law: no NaN, no negative entry, a sum of 1 within 0.001; its sum is ",
                 sum);
}

}  // namespace

double alpha_star(ArrayView<const double> target, ArrayView<const double> draft, int32_t num_draws,
                  Proposal proposal) {
  TREESPEC_CHECK(target.size() == draft.size() && target.size() > 0,
                 "alpha_star: target and draft must have one length >= 1, got ", target.size(),
                 " and ", draft.size());
  check_law("target", target);
  check_law("draft", draft);
  TREESPEC_CHECK(num_draws >= 1, "alpha_star: num_draws must be >= 1, got ", num_draws);
  TREESPEC_CHECK(proposal == Proposal::kIid || proposal == Proposal::kTopPlusOne,
                 "alpha_star: proposal must be iid or top_plus_one, got ", proposal_name(proposal));
  return proposal == Proposal::kIid ? alpha_of_iid(target, draft, num_draws)
                                    : alpha_of_top_plus_one(target, draft, num_draws);
}

}  // namespace treespec
