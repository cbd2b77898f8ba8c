// SPDX-License-Identifier: Apache-2.0
// The running pair (target residual P, draft law Q) of rejection verifiers at one node.
#pragma once

#include <cstdint>
#include <vector>

#include "shared/fixed_point.hd.h"
#include "treespec/verifier.h"

namespace treespec {

/// A rejection changes P only where Q is; elsewhere it scales it. So P is kept as numbers at the
/// tokens that Q can draw (the support) and as a factor on the target row everywhere else, and one
/// pass over the row serves any number of rejections. Sums over the support are order-free
/// integers, those of the rest have a fixed order: every comparison is between the same float64
/// numbers on every device. Source of the rules: verification.md 3, 4, 5 and 9.4.
class RowPair {
 public:
  /// Loads the target row of `node`, and its draft law when it has draws.
  void load(const TokenTree& tree, int32_t node, TargetRows& target_rows, const DraftLaw& law);

  /// P(x) and Q(x), normalised.
  double target(int32_t token) const;
  double draft(int32_t token) const;
  /// Whether the draft law can still have produced `token`.
  bool drawable(int32_t token) const;

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
  /// Sum of min(P / rho, Q).
  double overlap(double rho) const;
  /// Q <- Q without `token`, which is drawable.
  void remove(int32_t token);
  /// Q <- norm(law), law over `support()`.
  void replace_draft(const std::vector<double>& law);
  /// The tokens that Q could draw at first, ascending, and P and Q there, normalised.
  ArrayView<const int32_t> support() const { return token_; }
  /// Place of a token there, -1 if it is not.
  int32_t find(int32_t token) const;
  void normalised(std::vector<double>& target, std::vector<double>& draft) const;
  /// A token from the current P.
  int32_t sample(double u) const;

 private:
  double target_mass() const { return shared::from_fixed(target_sum_) + rest_mass_; }
  /// The rest is scaled by `rest_factor`; then P, whose support changed, is brought to mass 1.
  double normalise_target(double rest_factor);
  void renormalise_draft();
  uint64_t block_sum(int64_t block, int64_t from, int64_t to) const;
  int32_t sample_block(int64_t block, int64_t from, int64_t to, uint64_t mass,
                       uint64_t offset) const;

  TargetRow row_;
  std::vector<int32_t> token_;               // the support
  std::vector<double> target_, draft_;       // P and Q there
  uint64_t target_sum_ = 0, draft_sum_ = 0;  // fixed point, 2^60
  double rest_scale_ = 0.0;                  // P = rest_scale_ * weight elsewhere
  double rest_mass_ = 0.0;                   // of P there
};

}  // namespace treespec
