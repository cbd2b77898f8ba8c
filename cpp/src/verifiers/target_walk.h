// SPDX-License-Identifier: Apache-2.0
// The walk of verifiers that look at the target alone: pick a token, follow the matching child.
#pragma once

#include <vector>

#include "treespec/verifier.h"

namespace treespec {

/// `pick(node)` names the token after a node. Lossless for every tree when the pick follows the
/// row's law and never looks at the tree.
template <class Pick>
Verdict target_walk(const TokenTree& tree, Pick&& pick) {
  Verdict verdict;
  for (int32_t node = 0;;) {
    verdict.next_token = pick(node);
    node = tree.find_child(node, verdict.next_token);
    if (node < 0) return verdict;
    verdict.accepted_nodes.push_back(node);
  }
}

/// Probability that the walk passes through each node; `chances(node)` gives that of every token of
/// a node's row.
template <class Chances>
std::vector<double> target_walk_probability(const TokenTree& tree, Chances&& chances) {
  std::vector<double> reached(tree.token.size(), 1.0);
  for (int32_t node = 0; node < tree.num_nodes(); ++node) {
    if (tree.draws(node).empty()) continue;
    const auto chance = chances(node);
    for (const int32_t child : tree.draws(node)) {
      reached[child] = reached[node] * chance(tree.token[child]);
    }
  }
  return reached;
}

}  // namespace treespec
