// SPDX-License-Identifier: Apache-2.0
// Recursive rejection sampling: test the draws of a node in draw order against the running
// residual. With replacement: Miao et al., "SpecInfer", 2023, arXiv 2305.09781 (multi-step
// speculative sampling). Without: Chen et al., "Sequoia", 2024, arXiv 2402.12374; DySpec, arXiv
// 2410.11744. Draws consumed: accept (node, j) for each draw tested, sample (last node).
#pragma once

#include "verifiers/step.hd.h"

namespace treespec {

struct RecursiveRejectionRule {
  template <class Tree, class Rows, class Coins>
  TREESPEC_RULE static Step step(const Tree& tree, int32_t node, Rows& rows, const Coins& coins) {
    const ArrayView<const int32_t> draws = tree.draws(node);
    for (int32_t j = 0; j < draws.size(); ++j) {
      const int32_t token = tree.token[draws[j]];
      if (!rows.drawable(token)) continue;  // exhausted, or no draw of this law
      if (rows.accepts(token, coins.accept(node, j)) || rows.reject() == 0.0) return {draws[j], -1};
      if (tree.proposal != Proposal::kIid) rows.remove(token);
    }
    return {-1, rows.sample(coins.sample(node))};
  }
};

}  // namespace treespec
