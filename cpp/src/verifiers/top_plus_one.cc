// SPDX-License-Identifier: Apache-2.0
#include "verifiers/registry.h"
#include "verifiers/top_down.h"
#include "verifiers/top_plus_one.hd.h"

namespace treespec {
namespace {

class TopPlusOne final : public TopDownVerifier {
  Step step(const TokenTree& tree, int32_t node, RowPair& rows, const Coins& coins) const override {
    return TopPlusOneRule::step(tree, node, rows, coins);
  }

  Branching branching(const TokenTree& tree, int32_t node, RowPair& rows) const override {
    Branching out;
    const int32_t token = tree.token[TopPlusOneRule::keep_rest(tree, node, rows)];
    for (int64_t j = 0; j + 1 < tree.draws(node).size(); ++j) out.take(0.0);
    if (!rows.drawable(token)) return out;  // the likely tokens have all of the law
    const double acceptance = rows.acceptance(token);
    out.take(rows.reject() == 0.0 ? 1.0 : acceptance);
    return out;
  }
};

}  // namespace

std::unique_ptr<Verifier> make_top_plus_one_verifier() { return std::make_unique<TopPlusOne>(); }

}  // namespace treespec
