// SPDX-License-Identifier: Apache-2.0
// The running pair (target residual P, draft law Q) of rejection verifiers at one node.
#pragma once

#include <cstdint>
#include <vector>

#include "shared/fixed_point.hd.h"
#include "treespec/verifier.h"

namespace treespec {

/// Both rows are kept dense and scaled by their order-free sums, so that every comparison is
/// between the same float64 numbers on every device. Source of the rules:
/// verification.md 3, 4, 5 and 9.
class RowPair {
 public:
  /// Loads the target row of `node`, and its draft row when it has draws.
  void load(const TokenTree& tree, int32_t node, TargetRows& target_rows, const DraftLaw& law);

  int32_t vocab_size() const { return static_cast<int32_t>(target_.size()); }
  /// P(x) and Q(x), normalised.
  double target(int32_t token) const { return target_[token] / shared::from_fixed(target_sum_); }
  double draft(int32_t token) const { return draft_[token] / shared::from_fixed(draft_sum_); }
  /// Whether the draft row can still have produced `token`.
  bool drawable(int32_t token) const { return draft_sum_ > 0 && draft_[token] > 0.0; }

  /// min(1, weight * P(x) / Q(x)) for a drawable token.
  double acceptance(int32_t token, double weight = 1.0) const;
  /// Accept test of a drawn token without division: u * Q(x) < weight * P(x).
  bool accepts(int32_t token, double u, double weight = 1.0) const;
  /// P <- norm((weight * P - Q)+); returns the mass before it was normalised. 0: nothing is left.
  /// For weight 1 that means P = Q up to rounding: P stays, and the caller treats the token as
  /// accepted, which was certain.
  double reject(double weight = 1.0);
  /// P <- norm(P - gamma * min(P / rho, Q)); returns the mass before it was normalised.
  double subtract(double gamma, double rho);
  /// Q <- Q without `token`.
  void remove(int32_t token);
  /// Q <- norm(law), `[V]`.
  void replace_draft(std::vector<double> law);
  /// P and Q, normalised, at the tokens with Q > 0, ascending.
  void gather_support(std::vector<int32_t>& token, std::vector<double>& target,
                      std::vector<double>& draft) const;
  /// A token from the current P.
  int32_t sample(double u) const;

 private:
  void renormalise_draft();
  /// P <- P / mass, given as a sum; returns it as a number.
  double normalise_target(uint64_t mass);

  std::vector<double> target_, draft_;
  uint64_t target_sum_ = 0, draft_sum_ = 0;  // fixed point, 2^60
};

}  // namespace treespec
