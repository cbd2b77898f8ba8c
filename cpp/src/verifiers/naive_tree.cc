// SPDX-License-Identifier: Apache-2.0
#include "verifiers/naive_tree.hd.h"
#include "verifiers/registry.h"
#include "verifiers/top_down.h"

namespace treespec {
namespace {

class NaiveTree final : public TopDownVerifier {
  Step step(const TokenTree& tree, int32_t node, RowPair& rows, const Coins& coins) const override {
    return NaiveTreeRule::step(tree, node, rows, coins);
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
