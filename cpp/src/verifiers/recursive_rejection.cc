// SPDX-License-Identifier: Apache-2.0
// Recursive rejection sampling: test the draws of a node in draw order against the running
// residual. With replacement: Miao et al., "SpecInfer", 2023, arXiv 2305.09781 (multi-step
// speculative sampling). Without: Chen et al., "Sequoia", 2024, arXiv 2402.12374; DySpec, arXiv
// 2410.11744. Draws consumed: accept (node, j) for each draw tested, sample (last node).
#include "verifiers/registry.h"
#include "verifiers/top_down.h"

namespace treespec {
namespace {

class RecursiveRejection final : public TopDownVerifier {
  Step step(const TokenTree& tree, int32_t node, RowPair& rows, const Coins& coins) const override {
    const ArrayView<const int32_t> draws = tree.draws(node);
    for (int64_t j = 0; j < draws.size(); ++j) {
      const int32_t token = tree.token[draws[j]];
      if (!rows.drawable(token)) continue;  // exhausted, or no draw of this law
      const double u = coins.accept(node, static_cast<int32_t>(j));
      if (rows.accepts(token, u) || rows.reject() == 0.0) return {draws[j]};
      if (tree.proposal != Proposal::kIid) rows.remove(token);
    }
    return {-1, rows.sample(coins.sample(node))};
  }

  Branching branching(const TokenTree& tree, int32_t node, RowPair& rows) const override {
    Branching out;
    for (const int32_t child : tree.draws(node)) {
      const int32_t token = tree.token[child];
      if (!rows.drawable(token)) {
        out.take(0.0);
        continue;
      }
      const double acceptance = rows.acceptance(token);
      out.take(rows.reject() == 0.0 ? 1.0 : acceptance);
      if (tree.proposal != Proposal::kIid) rows.remove(token);
    }
    return out;
  }
};

}  // namespace

std::unique_ptr<Verifier> make_recursive_rejection() {
  return std::make_unique<RecursiveRejection>();
}

}  // namespace treespec
