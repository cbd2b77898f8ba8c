// SPDX-License-Identifier: Apache-2.0
// Traversal verification: bottom-up, sequence by sequence. A node inherits the acceptance of its
// path, is tested after all its children were rejected, and a rejection changes the rows of its
// parent alone. Source: Weng et al., "Traversal Verification for Speculative Tree Decoding", 2025,
// arXiv 2505.12398, algorithm 2; formulas as in verification.md 5. Draws consumed: accept (parent,
// first index in its draws) per node tested, sample (accepted node).
#include <algorithm>
#include <deque>
#include <vector>

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

  /// Afterwards `end()` and `rows()` tell where the walk ended.
  void run() {
    enter(0, 1.0, 0);
    while (end_ < 0) {
      Visit& visit = visits_.back();
      if (visit.child_is_out) {
        reject_child(visit);
      } else if (visit.draw < tree_.draws(visit.node).size() && visit.alpha > 0.0) {
        try_draw(visit);
      } else {
        leave(visit);
      }
    }
  }

  int32_t end() const { return end_; }
  const RowPair& rows() const { return *rows_; }

 private:
  /// A node on the way down; an own stack, since trees may be deeper than a thread's.
  struct Visit {
    int32_t node;
    double alpha;
    size_t level;  // of its rows
    int64_t draw = 0;
    bool child_is_out = false;  // the child of `draw` was visited, and the walk did not end there
  };

  void enter(int32_t node, double alpha, size_t level) {
    while (levels_.size() <= level) levels_.emplace_back();
    if (!tree_.draws(node).empty()) levels_[level].load(tree_, node, target_rows_, law_);
    visits_.push_back({node, alpha, level});
  }

  /// A single draw needs no rows while its subtree is visited, so that a chain, however long, takes
  /// the rows of one node.
  bool is_single(int32_t node) const { return tree_.draws(node).size() == 1; }

  void try_draw(Visit& visit) {
    const ArrayView<const int32_t> draws = tree_.draws(visit.node);
    const int32_t child = draws[visit.draw];
    const RowPair& rows = levels_[visit.level];
    if (!rows.drawable(tree_.token[child])) {  // exhausted, or no draw of this law
      ++visit.draw;
      return;
    }
    visit.child_is_out = true;
    const auto before = draws.begin() + visit.draw;
    if (std::find(draws.begin(), before, child) != before) return;  // a repeat is rejected at once
    const double alpha = rows.acceptance(tree_.token[child], visit.alpha);
    // What no test can pass is not asked for: behind a forbidden token a grammar has no row at all.
    if (alpha == 0.0) return;
    enter(child, alpha, is_single(visit.node) ? visit.level : visit.level + 1);
  }

  void reject_child(Visit& visit) {
    RowPair& rows = levels_[visit.level];
    if (is_single(visit.node)) rows.load(tree_, visit.node, target_rows_, law_);
    const double left = rows.reject(visit.alpha);
    const bool certain = visit.node == 0 || visit.alpha == 1.0;
    visit.alpha = certain ? 1.0 : left / (left + 1.0 - visit.alpha);
    const int32_t child = tree_.draws(visit.node)[visit.draw];
    if (tree_.proposal != Proposal::kIid) rows.remove(tree_.token[child]);
    visit.child_is_out = false;
    ++visit.draw;
  }

  /// The node's own test; all its children were rejected.
  void leave(const Visit& visit) {
    if (visit.node != 0 && !test_(visit.node, visit.alpha)) return visits_.pop_back();
    RowPair& rows = levels_[visit.level];
    if (tree_.draws(visit.node).empty()) rows.load(tree_, visit.node, target_rows_, law_);
    end_ = visit.node;
    rows_ = &rows;
  }

  const TokenTree& tree_;
  TargetRows& target_rows_;
  const DraftLaw& law_;
  Test test_;
  std::vector<Visit> visits_;
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
    walk.run();
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
    Walk(tree, target_rows, draft_law, test).run();
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
