// SPDX-License-Identifier: Apache-2.0
// Traversal verification: bottom-up, sequence by sequence. A node inherits the acceptance of its
// path, is tested after all its children were rejected, and a rejection changes the rows of its
// parent alone. Source: Weng et al., "Traversal Verification for Speculative Tree Decoding", 2025,
// arXiv 2505.12398, algorithm 2; formulas as in verification.md 5. Draws consumed: accept (parent,
// first index in its draws) per node tested, sample (accepted node).
#pragma once

#include "verifiers/step.hd.h"

namespace treespec {

/// A node on the way down.
struct Visit {
  int32_t node;
  double alpha;
  int32_t level;  // of its rows
  int32_t draw;
  bool child_is_out;  // the child of `draw` was visited, and the walk did not end there
};

/// One walk. `Levels`: rows of the nodes on the way, `load(level, node)` and `[level]`. `Stack`: of
/// visits; an own one, since trees may be deeper than a thread's. `test(node, alpha)` decides
/// whether the walk ends at a node other than the root, whose acceptance is certain; children come
/// before their parents.
template <class Tree, class Levels, class Stack, class Test>
class TraversalWalk {
 public:
  TREESPEC_RULE TraversalWalk(const Tree& tree, Levels& levels, Stack& visits, Test& test)
      : tree_(tree), levels_(levels), visits_(visits), test_(test) {}

  /// The level of the rows where the walk ended, at `end()`.
  TREESPEC_RULE int32_t run() {
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
    return level_;
  }
  TREESPEC_RULE int32_t end() const { return end_; }

  /// Index of the first draw that made `child`, among those of `node`.
  TREESPEC_RULE static int32_t place_among_draws(const Tree& tree, int32_t node, int32_t child) {
    const ArrayView<const int32_t> draws = tree.draws(node);
    int32_t place = 0;
    while (place < draws.size() && draws[place] != child) ++place;
    return place;
  }

 private:
  TREESPEC_RULE void enter(int32_t node, double alpha, int32_t level) {
    if (!tree_.draws(node).empty()) levels_.load(level, node);
    visits_.push_back({node, alpha, level, 0, false});
  }

  /// A single draw needs no rows while its subtree is visited, so that a chain, however long, takes
  /// the rows of one node.
  TREESPEC_RULE bool is_single(int32_t node) const { return tree_.draws(node).size() == 1; }

  TREESPEC_RULE void try_draw(Visit& visit) {
    const int32_t child = tree_.draws(visit.node)[visit.draw];
    const auto& rows = levels_[visit.level];
    const int32_t token = tree_.token[child];
    if (!rows.drawable(token)) {  // exhausted, or no draw of this law
      ++visit.draw;
      return;
    }
    visit.child_is_out = true;
    if (place_among_draws(tree_, visit.node, child) < visit.draw) return;  // a repeat is rejected
    const double alpha = rows.acceptance(token, visit.alpha);
    // What no test can pass is not asked for: behind a forbidden token a grammar has no row at all.
    if (alpha == 0.0) return;
    enter(child, alpha, is_single(visit.node) ? visit.level : visit.level + 1);
  }

  TREESPEC_RULE void reject_child(Visit& visit) {
    if (is_single(visit.node)) levels_.load(visit.level, visit.node);
    auto& rows = levels_[visit.level];
    const double left = rows.reject(visit.alpha);
    const bool certain = visit.node == 0 || visit.alpha == 1.0;
    visit.alpha = certain ? 1.0 : left / (left + 1.0 - visit.alpha);
    const int32_t child = tree_.draws(visit.node)[visit.draw];
    if (tree_.proposal != Proposal::kIid) rows.remove(tree_.token[child]);
    visit.child_is_out = false;
    ++visit.draw;
  }

  /// The node's own test; all its children were rejected.
  TREESPEC_RULE void leave(const Visit& visit) {
    if (visit.node != 0 && !test_(visit.node, visit.alpha)) return visits_.pop_back();
    if (tree_.draws(visit.node).empty()) levels_.load(visit.level, visit.node);
    end_ = visit.node;
    level_ = visit.level;
  }

  const Tree& tree_;
  Levels& levels_;
  Stack& visits_;
  Test& test_;
  int32_t end_ = -1;
  int32_t level_ = 0;
};

}  // namespace treespec
