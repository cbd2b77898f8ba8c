// SPDX-License-Identifier: Apache-2.0
#include "verifiers/registry.h"
#include "verifiers/spectr.hd.h"
#include "verifiers/top_down.h"

namespace treespec {
namespace {

class SpecTr final : public TopDownVerifier {
  Step step(const TokenTree& tree, int32_t node, RowPair& rows, const Coins& coins) const override {
    return SpecTrRule::step(tree, node, rows, coins);
  }

  Branching branching(const TokenTree& tree, int32_t node, RowPair& rows) const override {
    const SpecTrRule rule = SpecTrRule::solve(rows, tree.draws(node).size());
    Branching out;
    for (const int32_t child : tree.draws(node)) {
      const int32_t token = tree.token[child];
      out.take(rows.drawable(token) ? rows.acceptance(token, 1.0 / rule.rho) : 0.0);
    }
    if (rows.subtract(rule.gamma, rule.rho) == 0.0) {
      out.accepted.back() += out.none;
      out.none = 0.0;
    }
    return out;
  }
};

}  // namespace

std::unique_ptr<Verifier> make_spectr() { return std::make_unique<SpecTr>(); }

}  // namespace treespec
