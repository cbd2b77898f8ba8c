// SPDX-License-Identifier: Apache-2.0
// The token-level rule on the first draw of a node; the other draws help when the residual token is
// one of theirs. Source: the baseline "NaiveTree" of arXiv 2602.16994, 2026.
// Draws consumed: accept (node, 0), and sample (node) after a rejection.
#pragma once

#include "verifiers/step.hd.h"

namespace treespec {

struct NaiveTreeRule {
  template <class Tree, class Rows, class Coins>
  TREESPEC_RULE static Step step(const Tree& tree, int32_t node, Rows& rows, const Coins& coins) {
    const int32_t first = tree.draws(node)[0];
    const int32_t token = tree.token[first];
    if (rows.drawable(token) &&
        (rows.accepts(token, coins.accept(node, 0)) || rows.reject() == 0.0)) {
      return {first, -1};
    }
    return {-1, rows.sample(coins.sample(node))};
  }
};

}  // namespace treespec
