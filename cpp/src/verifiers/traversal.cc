// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <deque>
#include <vector>

#include "verifiers/registry.h"
#include "verifiers/row_pair.h"
#include "verifiers/traversal.hd.h"

namespace treespec {
namespace {

/// The rows of the nodes on the way down.
class Levels {
 public:
  Levels(const TokenTree& tree, TargetRows& target_rows, const DraftLaw& law)
      : tree_(tree), target_rows_(target_rows), law_(law) {}

  void load(int32_t level, int32_t node) {
    while (static_cast<int32_t>(rows_.size()) <= level) rows_.emplace_back();
    (*this)[level].load(tree_, node, target_rows_, law_);
  }
  RowPair& operator[](int32_t level) { return rows_[static_cast<size_t>(level)]; }

 private:
  const TokenTree& tree_;
  TargetRows& target_rows_;
  const DraftLaw& law_;
  std::deque<RowPair> rows_;  // addresses stay
};

template <class Test>
using Walk = TraversalWalk<TokenTree, Levels, std::vector<Visit>, Test>;

class Traversal final : public Verifier {
 public:
  Verdict verify(const TokenTree& tree, TargetRows& target_rows, const DraftLaw& draft_law,
                 const Coins& coins) const override {
    const auto test = [&](int32_t node, double alpha) {
      const int32_t parent = tree.parent[node];
      return coins.accept(parent, Walk<int>::place_among_draws(tree, parent, node)) < alpha;
    };
    Levels levels(tree, target_rows, draft_law);
    std::vector<Visit> visits;
    Walk<decltype(test)> walk(tree, levels, visits, test);
    const int32_t level = walk.run();
    Verdict verdict;
    for (int32_t node = walk.end(); node > 0; node = tree.parent[node]) {
      verdict.accepted_nodes.push_back(node);
    }
    std::reverse(verdict.accepted_nodes.begin(), verdict.accepted_nodes.end());
    verdict.next_token = levels[level].sample(coins.sample(walk.end()));
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
    Levels levels(tree, target_rows, draft_law);
    std::vector<Visit> visits;
    Walk<decltype(test)>(tree, levels, visits, test).run();
    reached[0] = left;
    for (int32_t node = tree.num_nodes() - 1; node > 0; --node) {
      reached[tree.parent[node]] += reached[node];
    }
    return reached;
  }
};

}  // namespace

std::unique_ptr<Verifier> make_traversal() { return std::make_unique<Traversal>(); }

}  // namespace treespec
