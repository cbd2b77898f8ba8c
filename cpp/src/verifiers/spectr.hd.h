// SPDX-License-Identifier: Apache-2.0
// K-SEQ: every draw is tested with min(1, p / (rho q)), rho the smallest that keeps the first
// accepted token within the target's law. Lists must be drawn whole: k may not depend on them.
// Source: Sun et al., "SpecTr", 2023, arXiv 2310.15141, algorithm 2; bisection as in
// verification.md 4.2. Draws consumed: accept (node, j) until one passes, sample (node) if none.
#pragma once

#include "verifiers/step.hd.h"

namespace treespec {

struct SpecTrRule {
  double rho = 1.0;
  double gamma = 0.0;  // of the residual p - gamma * min(p / rho, q)

  template <class Tree, class Rows, class Coins>
  TREESPEC_RULE static Step step(const Tree& tree, int32_t node, Rows& rows, const Coins& coins) {
    const ArrayView<const int32_t> draws = tree.draws(node);
    const SpecTrRule rule = solve(rows, draws.size());
    for (int32_t j = 0; j < draws.size(); ++j) {
      const int32_t token = tree.token[draws[j]];
      if (!rows.drawable(token)) continue;
      if (rows.accepts(token, coins.accept(node, j), 1.0 / rule.rho)) return {draws[j], -1};
    }
    // Nothing left: p = q up to rounding, and some draw was certain.
    if (rows.subtract(rule.gamma, rule.rho) == 0.0) return {draws[draws.size() - 1], -1};
    return {-1, rows.sample(coins.sample(node))};
  }

  /// rho is the smallest in [1, k] with acc(rho) <= rho * beta(rho).
  template <class Rows>
  TREESPEC_RULE static SpecTrRule solve(const Rows& rows, int64_t k) {
    constexpr int kSteps = 52;  // of the bisection: all bits of a double
    double low = 1.0, high = static_cast<double>(k);
    for (int i = 0; i < kSteps && low < high; ++i) {
      const double middle = low + (high - low) * 0.5;
      const double beta = rows.overlap(middle);
      (any_of(beta, k) <= middle * beta ? high : low) = middle;
    }
    const double beta = rows.overlap(high);
    return {high, beta > 0.0 ? any_of(beta, k) / beta : 0.0};
  }

  /// 1 - (1 - x)^k.
  TREESPEC_RULE static double any_of(double x, int64_t k) {
    double none = 1.0;
    for (int64_t i = 0; i < k; ++i) none *= 1.0 - x;
    return 1.0 - none;
  }
};

}  // namespace treespec
