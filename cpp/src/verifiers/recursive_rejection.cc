// SPDX-License-Identifier: Apache-2.0
#include "verifiers/recursive_rejection.hd.h"
#include "verifiers/registry.h"
#include "verifiers/top_down.h"

namespace treespec {
namespace {

class RecursiveRejection final : public TopDownVerifier {
  Step step(const TokenTree& tree, int32_t node, RowPair& rows, const Coins& coins) const override {
    return RecursiveRejectionRule::step(tree, node, rows, coins);
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
