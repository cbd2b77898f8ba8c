// SPDX-License-Identifier: Apache-2.0
// Typical acceptance: LOSSY. The longest path of tokens that are likely enough for the target,
// given how undecided it is. Source: Cai et al., "Medusa", 2024, arXiv 2401.10774, section 2.3.1.
// Draws consumed: sample (last node).
#pragma once

#include <limits>

#include "shared/fixed_point.hd.h"
#include "shared/math.hd.h"
#include "verifiers/step.hd.h"

namespace treespec {

/// A token's part of the entropy of its row, in fixed point: no order of the sum is better than
/// another, and it stays below 2^64 for any vocabulary of less than e^16 tokens.
TREESPEC_HD uint64_t entropy_term(double probability) {
  constexpr double kSmallestNormal = std::numeric_limits<double>::min();
  const double p = probability < 1.0 ? probability : 1.0;
  if (!(p > 0.0)) return 0;
  const double log_p = shared::log_unit(p < kSmallestNormal ? kSmallestNormal : p);
  return static_cast<uint64_t>(shared::to_fixed(-p * log_p));
}

/// Probability above which a token is typical of a row; `entropy`: sum of entropy_term.
TREESPEC_HD double least_typical(uint64_t entropy) {
  constexpr double kEpsilon = 0.09;
  constexpr double kDelta = 0.3;
  const double bound = kDelta * shared::exp_nonpositive(-shared::from_fixed(entropy));
  return bound < kEpsilon ? bound : kEpsilon;
}

struct TypicalRule {
  /// No sum of log p.
  static constexpr double kNotReached = 1.0;

  /// End of the longest path of typical tokens; ties: larger sum of log p, then lower id. -1: a row
  /// is no law. `scores`: sum of log p of each node, 0 for the root and kNotReached for all others;
  /// `rows`: load(node), and then probability(token) and entropy() of that node's target row.
  template <class Tree, class Rows, class Scores>
  TREESPEC_RULE static int32_t longest_path(const Tree& tree, Rows& rows, Scores& scores) {
    int32_t best = 0;
    for (int32_t node = 0; node < scores.size(); ++node) {
      const double score = scores[node];
      if (score == kNotReached) continue;
      const bool longer = tree.depth[node] > tree.depth[best];
      if (longer || (tree.depth[node] == tree.depth[best] && score > scores[best])) best = node;
      const ArrayView<const int32_t> draws = tree.draws(node);
      if (draws.empty()) continue;
      if (!rows.load(node)) return -1;
      const double least = least_typical(rows.entropy());
      for (int64_t j = 0; j < draws.size(); ++j) {
        const double p = rows.probability(tree.token[draws[j]]);
        if (p > least) scores.set(draws[j], score + shared::log_unit(p < 1.0 ? p : 1.0));
      }
    }
    return best;
  }
};

}  // namespace treespec
