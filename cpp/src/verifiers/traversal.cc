// SPDX-License-Identifier: Apache-2.0
// Traversal verification: bottom-up, sequence by sequence. A node inherits the acceptance of its
// path, is tested after all its children were rejected, and a rejection changes the rows of its
// parent alone. Source: Weng et al., "Traversal Verification for Speculative Tree Decoding", 2025,
// arXiv 2505.12398, algorithm 2; formulas as in verification.md 5. Draws consumed: accept (parent,
// first index in its draws) per node tested, sample (accepted node).
#include <algorithm>
#include <deque>

#include "verifiers/registry.h"
#include "verifiers/row_pair.h"

namespace treespec {
namespace {

/// One walk. `test(node, alpha)` decides whether the walk ends at a node other than the root, whose
/// acceptance is certain; children come before their parents.
template <class Test>
class Walk {
 public:
  Walk(const TokenTree& tree, TargetRows& target_rows, const DraftLaw& law, Test test)
      : tree_(tree), target_rows_(target_rows), law_(law), test_(test) {}

  /// Whether the walk ends in the subtree of `node`; then `end()` and `rows()` tell where.
  bool visit(int32_t node, double alpha, size_t level = 0) {
    while (levels_.size() <= level) levels_.emplace_back();
    RowPair& rows = levels_[level];
    const ArrayView<const int32_t> draws = tree_.draws(node);
    if (!draws.empty()) rows.load(tree_, node, target_rows_, law_);
    for (int64_t j = 0; j < draws.size() && alpha > 0.0; ++j) {
      const int32_t child = draws[j];
      const int32_t token = tree_.token[child];
      if (!rows.drawable(token)) continue;  // exhausted, or no draw of this law
      const bool seen = std::find(draws.begin(), draws.begin() + j, child) != draws.begin() + j;
      if (!seen) {
        // A single draw needs no rows while its subtree is visited, so that a chain, however long,
        // takes the memory of one node.
        const bool single = draws.size() == 1;
        if (visit(child, rows.acceptance(token, alpha), single ? level : level + 1)) return true;
        if (single) rows.load(tree_, node, target_rows_, law_);
      }
      alpha = rejected(node, alpha, rows);
      if (tree_.proposal != Proposal::kIid) rows.remove(token);
    }
    if (node != 0 && !test_(node, alpha)) return false;
    if (draws.empty()) rows.load(tree_, node, target_rows_, law_);
    end_ = node;
    rows_ = &rows;
    return true;
  }

  int32_t end() const { return end_; }
  const RowPair& rows() const { return *rows_; }

 private:
  /// Acceptance of a node after one more of its children was rejected.
  static double rejected(int32_t node, double alpha, RowPair& rows) {
    const double left = rows.reject(alpha);
    if (node == 0 || alpha == 1.0) return 1.0;
    return left / (left + 1.0 - alpha);
  }

  const TokenTree& tree_;
  TargetRows& target_rows_;
  const DraftLaw& law_;
  Test test_;
  std::deque<RowPair> levels_;  // addresses stay
  int32_t end_ = -1;
  const RowPair* rows_ = nullptr;
};

class Traversal final : public Verifier {
 public:
  Verdict verify(const TokenTree& tree, TargetRows& target_rows, const DraftLaw& draft_law,
                 const Coins& coins) const override {
    const auto test = [&](int32_t node, double alpha) {
      return coins.accept(tree.parent[node], place_among_draws(tree, node)) < alpha;
    };
    Walk walk(tree, target_rows, draft_law, test);
    walk.visit(0, 1.0);
    Verdict verdict;
    for (int32_t node = walk.end(); node > 0; node = tree.parent[node]) {
      verdict.accepted_nodes.push_back(node);
    }
    std::reverse(verdict.accepted_nodes.begin(), verdict.accepted_nodes.end());
    verdict.next_token = walk.rows().sample(coins.sample(walk.end()));
    return verdict;
  }

  /// Every test fails in turn: the walk ends at node n with t_n times the product of the failures
  /// before it, and passes through all ancestors of its end.
  std::vector<double> node_probability(const TokenTree& tree, TargetRows& target_rows,
                                       const DraftLaw& draft_law) const override {
    std::vector<double> reached(tree.token.size(), 0.0);
    double left = 1.0;
    const auto test = [&](int32_t node, double alpha) {
      reached[node] = left * alpha;
      left *= 1.0 - alpha;
      return false;
    };
    Walk(tree, target_rows, draft_law, test).visit(0, 1.0);
    reached[0] = left;
    for (int32_t node = tree.num_nodes() - 1; node > 0; --node) {
      reached[tree.parent[node]] += reached[node];
    }
    return reached;
  }

 private:
  static int32_t place_among_draws(const TokenTree& tree, int32_t node) {
    const ArrayView<const int32_t> draws = tree.draws(tree.parent[node]);
    return static_cast<int32_t>(std::find(draws.begin(), draws.end(), node) - draws.begin());
  }
};

}  // namespace

std::unique_ptr<Verifier> make_traversal() { return std::make_unique<Traversal>(); }

}  // namespace treespec
