// SPDX-License-Identifier: Apache-2.0
// The walk of verifiers that look at the target alone: pick a token, follow the matching child.
#pragma once

#include <vector>

#include "treespec/verifier.h"

namespace treespec {

/// `pick(node, weights)` names the token after `node`. Lossless for every tree when the pick
/// follows the row's law and never looks at the tree.
template <class Pick>
Verdict target_walk(const TokenTree& tree, TargetRows& rows, Pick&& pick) {
  static thread_local std::vector<double> weights;  // kept, like the scores of process_logits
  weights.resize(static_cast<size_t>(rows.vocab_size()));
  Verdict verdict;
  for (int32_t node = 0;;) {
    rows.load(node, weights.data());
    verdict.next_token = pick(node, weights);
    node = tree.find_child(node, verdict.next_token);
    if (node < 0) return verdict;
    verdict.accepted_nodes.push_back(node);
  }
}

/// Probability that the walk passes through each node; `chance(weights, token)` is that of a pick.
template <class Chance>
std::vector<double> target_walk_probability(const TokenTree& tree, TargetRows& rows,
                                            Chance&& chance) {
  std::vector<double> weights(static_cast<size_t>(rows.vocab_size()));
  std::vector<double> reached(tree.token.size(), 1.0);
  for (int32_t node = 0, loaded = -1; node < tree.num_nodes(); ++node) {
    loaded = -1;
    for (const int32_t child : tree.draws(node)) {
      if (loaded != node) rows.load(loaded = node, weights.data());
      reached[child] = reached[node] * chance(weights, tree.token[child]);
    }
  }
  return reached;
}

}  // namespace treespec
