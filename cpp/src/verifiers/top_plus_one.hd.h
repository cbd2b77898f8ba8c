// SPDX-License-Identifier: Apache-2.0
// The exact optimal rule for k - 1 likeliest tokens and one drawn from the rest: the draw is tested
// against its own law, and likely tokens keep their full target mass in the residual.
// Source of the drafting: Hu et al., 2025, arXiv 2502.18779; the rule: verification.md 4.4.
// Draws consumed: accept (node, last draw), and sample (node) after a rejection.
#pragma once

#include "verifiers/step.hd.h"

namespace treespec {

struct TopPlusOneRule {
  template <class Tree, class Rows, class Coins>
  TREESPEC_RULE static Step step(const Tree& tree, int32_t node, Rows& rows, const Coins& coins) {
    const int32_t drawn = keep_rest(tree, node, rows);
    const auto last = static_cast<int32_t>(tree.draws(node).size()) - 1;
    const int32_t token = tree.token[drawn];
    if (rows.drawable(token) &&
        (rows.accepts(token, coins.accept(node, last)) || rows.reject() == 0.0)) {
      return {drawn, -1};
    }
    return {-1, rows.sample(coins.sample(node))};
  }

  /// Takes the likely tokens out of Q; returns the child that was drawn from the rest.
  template <class Tree, class Rows>
  TREESPEC_RULE static int32_t keep_rest(const Tree& tree, int32_t node, Rows& rows) {
    const ArrayView<const int32_t> draws = tree.draws(node);
    for (int64_t j = 0; j + 1 < draws.size(); ++j) {
      if (rows.drawable(tree.token[draws[j]])) rows.remove(tree.token[draws[j]]);
    }
    return draws[draws.size() - 1];
  }
};

}  // namespace treespec
