// SPDX-License-Identifier: Apache-2.0
// Speculative sampling of a chain: accept a token with min(1, p/q), else draw from (p - q)+.
// Source: Leviathan et al., 2023, arXiv 2211.17192, algorithm 1; Chen et al., 2023, arXiv
// 2302.01318. Draws consumed: accept (node, 0) along the path, sample (last node).
#include "verifiers/registry.h"
#include "verifiers/row_pair.h"

namespace treespec {
namespace {

class TokenLevel final : public Verifier {
 public:
  Verdict verify(const TokenTree& tree, TargetRows& target_rows, const DraftLaw& draft_law,
                 const Coins& coins) const override {
    static thread_local RowPair rows;  // kept: its rows are too large to map afresh
    Verdict verdict;
    for (int32_t node = 0;;) {
      rows.load(tree, node, target_rows, draft_law);
      const ArrayView<const int32_t> draws = tree.draws(node);
      const bool stop =
          draws.empty() || !rows.drawable(tree.token[draws[0]]) ||
          (!rows.accepts(tree.token[draws[0]], coins.accept(node, 0)) && rows.reject());
      if (stop) {
        verdict.next_token = rows.sample(coins.sample(node));
        return verdict;
      }
      node = draws[0];
      verdict.accepted_nodes.push_back(node);
    }
  }
};

}  // namespace

std::unique_ptr<Verifier> make_token_level() { return std::make_unique<TokenLevel>(); }

}  // namespace treespec
