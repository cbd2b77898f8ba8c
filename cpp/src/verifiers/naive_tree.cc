// SPDX-License-Identifier: Apache-2.0
// The token-level rule on the first draw of a node; the other draws help when the residual token is
// one of theirs. Source: the baseline "NaiveTree" of arXiv 2602.16994, 2026.
// Draws consumed: accept (node, 0), and sample (node) after a rejection.
#include "verifiers/registry.h"
#include "verifiers/top_down.h"

namespace treespec {
namespace {

class NaiveTree final : public TopDownVerifier {
  Step step(const TokenTree& tree, int32_t node, RowPair& rows, const Coins& coins) const override {
    const int32_t first = tree.draws(node)[0];
    const int32_t token = tree.token[first];
    if (rows.drawable(token) &&
        (rows.accepts(token, coins.accept(node, 0)) || rows.reject() == 0.0)) {
      return {first};
    }
    return {-1, rows.sample(coins.sample(node))};
  }

  Branching branching(const TokenTree& tree, int32_t node, RowPair& rows) const override {
    Branching out;
    const int32_t token = tree.token[tree.draws(node)[0]];
    if (!rows.drawable(token)) return out;
    const double acceptance = rows.acceptance(token);
    out.take(rows.reject() == 0.0 ? 1.0 : acceptance);
    return out;
  }
};

}  // namespace

std::unique_ptr<Verifier> make_naive_tree() { return std::make_unique<NaiveTree>(); }

}  // namespace treespec
