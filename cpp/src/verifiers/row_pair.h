// SPDX-License-Identifier: Apache-2.0
// The running pair (target residual, draft law) of rejection verifiers at one node.
#pragma once

#include <cstdint>
#include <vector>

#include "treespec/verifier.h"

namespace treespec {

/// Both rows are kept dense and scaled by their order-free sums, so that every comparison is
/// between the same float64 numbers on every device. Source of the rules:
/// verification.md 3.3, 3.4, 9.
class RowPair {
 public:
  /// Loads the target row of `node`, and its draft row when it has draws.
  void load(const TokenTree& tree, int32_t node, TargetRows& target_rows, const DraftLaw& law);

  /// Accept test of a drawn token: u * Q(x) * sum(P) < P(x) * sum(Q). Never true for P(x) = 0.
  bool accepts(int32_t token, double u) const;
  /// P <- norm((P - Q)+). False when nothing is left, which exact arithmetic rules out: the caller
  /// then treats the token as accepted and loads the next node.
  bool reject();
  /// Q <- Q without `token`.
  void remove(int32_t token);
  /// Whether the draft row can still have produced `token`.
  bool drawable(int32_t token) const { return draft_sum_ > 0 && draft_[token] > 0.0; }
  /// A token from the current P.
  int32_t sample(double u) const;

 private:
  void renormalise_draft();

  std::vector<double> target_, draft_;
  uint64_t target_sum_ = 0, draft_sum_ = 0;  // fixed point, 2^60
};

}  // namespace treespec
