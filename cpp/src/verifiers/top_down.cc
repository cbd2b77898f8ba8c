// SPDX-License-Identifier: Apache-2.0
#include "verifiers/top_down.h"

#include <set>

namespace treespec {

Verdict TopDownVerifier::verify(const TokenTree& tree, TargetRows& target_rows,
                                const DraftLaw& draft_law, const Coins& coins) const {
  static thread_local RowPair rows;  // kept: its rows are too large to map afresh
  Verdict verdict;
  for (int32_t node = 0;;) {
    rows.load(tree, node, target_rows, draft_law);
    Step step;
    if (tree.draws(node).empty()) {
      step.token = rows.sample(coins.sample(node));
    } else {
      step = this->step(tree, node, rows, coins);
    }
    const int32_t child = step.child >= 0 ? step.child : tree.find_child(node, step.token);
    if (child < 0) {
      verdict.next_token = step.token;
      return verdict;
    }
    verdict.accepted_nodes.push_back(child);
    node = child;
  }
}

std::vector<double> TopDownVerifier::node_probability(const TokenTree& tree,
                                                      TargetRows& target_rows,
                                                      const DraftLaw& draft_law) const {
  RowPair rows;
  std::vector<double> reached(tree.token.size(), 0.0);
  reached[0] = 1.0;
  for (int32_t node = 0; node < tree.num_nodes(); ++node) {
    const ArrayView<const int32_t> draws = tree.draws(node);
    if (draws.empty() || reached[node] == 0.0) continue;
    rows.load(tree, node, target_rows, draft_law);
    const Branching branch = branching(tree, node, rows);
    for (size_t j = 0; j < branch.accepted.size(); ++j) {
      reached[draws[static_cast<int64_t>(j)]] += reached[node] * branch.accepted[j];
    }
    if (branch.none == 0.0) continue;  // and P may be empty
    for (const int32_t child : std::set<int32_t>(draws.begin(), draws.end())) {
      reached[child] += reached[node] * branch.none * rows.target(tree.token[child]);
    }
  }
  return reached;
}

}  // namespace treespec
