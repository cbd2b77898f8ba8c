// SPDX-License-Identifier: Apache-2.0
// The exact optimal rule for k - 1 likeliest tokens and one drawn from the rest: the draw is tested
// against its own law, and likely tokens keep their full target mass in the residual.
// Source of the drafting: Hu et al., 2025, arXiv 2502.18779; the rule: verification.md 4.4.
// Draws consumed: accept (node, last draw), and sample (node) after a rejection.
#include "verifiers/registry.h"
#include "verifiers/top_down.h"

namespace treespec {
namespace {

class TopPlusOne final : public TopDownVerifier {
  Step step(const TokenTree& tree, int32_t node, RowPair& rows, const Coins& coins) const override {
    const int32_t drawn = keep_rest(tree, node, rows);
    const auto last = static_cast<int32_t>(tree.draws(node).size()) - 1;
    const int32_t token = tree.token[drawn];
    if (rows.drawable(token) &&
        (rows.accepts(token, coins.accept(node, last)) || rows.reject() == 0.0)) {
      return {drawn};
    }
    return {-1, rows.sample(coins.sample(node))};
  }

  Branching branching(const TokenTree& tree, int32_t node, RowPair& rows) const override {
    Branching out;
    const int32_t token = tree.token[keep_rest(tree, node, rows)];
    for (int64_t j = 0; j + 1 < tree.draws(node).size(); ++j) out.take(0.0);
    if (!rows.drawable(token)) return out;  // the likely tokens have all of the law
    const double acceptance = rows.acceptance(token);
    out.take(rows.reject() == 0.0 ? 1.0 : acceptance);
    return out;
  }

  /// Takes the likely tokens out of Q; returns the child that was drawn from the rest.
  static int32_t keep_rest(const TokenTree& tree, int32_t node, RowPair& rows) {
    const ArrayView<const int32_t> draws = tree.draws(node);
    for (int64_t j = 0; j + 1 < draws.size(); ++j) {
      if (rows.drawable(tree.token[draws[j]])) rows.remove(tree.token[draws[j]]);
    }
    return draws[draws.size() - 1];
  }
};

}  // namespace

std::unique_ptr<Verifier> make_top_plus_one_verifier() { return std::make_unique<TopPlusOne>(); }

}  // namespace treespec
