// SPDX-License-Identifier: Apache-2.0
// Recursive rejection sampling: test the draws of a node in draw order against the running
// residual. With replacement: Miao et al., "SpecInfer", 2023, arXiv 2305.09781 (multi-step
// speculative sampling). Without: Chen et al., "Sequoia", 2024, arXiv 2402.12374; DySpec, arXiv
// 2410.11744. Draws consumed: accept (node, j) for each draw tested, sample (last node).
#include "verifiers/registry.h"
#include "verifiers/row_pair.h"

namespace treespec {
namespace {

class RecursiveRejection final : public Verifier {
 public:
  Verdict verify(const TokenTree& tree, TargetRows& target_rows, const DraftLaw& draft_law,
                 const Coins& coins) const override {
    static thread_local RowPair rows;  // kept: its rows are too large to map afresh
    Verdict verdict;
    for (int32_t node = 0;;) {
      rows.load(tree, node, target_rows, draft_law);
      const int32_t child = accepted_child(tree, node, rows, coins);
      if (child < 0) {
        verdict.next_token = rows.sample(coins.sample(node));
        return verdict;
      }
      verdict.accepted_nodes.push_back(child);
      node = child;
    }
  }

 private:
  /// The first draw that passes its test, or -1; `rows` then holds the residual.
  static int32_t accepted_child(const TokenTree& tree, int32_t node, RowPair& rows,
                                const Coins& coins) {
    const ArrayView<const int32_t> draws = tree.draws(node);
    const bool replaced = tree.proposal == Proposal::kIid;
    for (int64_t j = 0; j < draws.size(); ++j) {
      const int32_t token = tree.token[draws[j]];
      if (!rows.drawable(token)) continue;
      const double u = coins.accept(node, static_cast<int32_t>(j));
      if (rows.accepts(token, u) || !rows.reject()) return draws[j];
      if (!replaced) rows.remove(token);
    }
    return -1;
  }
};

}  // namespace

std::unique_ptr<Verifier> make_recursive_rejection() {
  return std::make_unique<RecursiveRejection>();
}

}  // namespace treespec
