// SPDX-License-Identifier: Apache-2.0
// The walk of verifiers that decide node by node from the root: at each node a child is accepted,
// or a token drawn in its place; if a child carries that token, the walk goes on there.
#pragma once

#include <vector>

#include "verifiers/row_pair.h"
#include "verifiers/step.hd.h"

namespace treespec {

/// Lossless when the token emitted at a node (the accepted child's or the drawn one) follows P, for
/// draws from the law the verifier takes (verification.md 0.3).
class TopDownVerifier : public Verifier {
 public:
  Verdict verify(const TokenTree& tree, TargetRows& target_rows, const DraftLaw& draft_law,
                 const Coins& coins) const final;
  std::vector<double> node_probability(const TokenTree& tree, TargetRows& target_rows,
                                       const DraftLaw& draft_law) const final;

 protected:
  /// For a node with draws; `rows` holds its P and Q.
  virtual Step step(const TokenTree& tree, int32_t node, RowPair& rows,
                    const Coins& coins) const = 0;
  /// Probability over the coins that draw j is accepted, `[draws]`, and the probability that none
  /// is. `rows` then holds what the token is drawn from.
  struct Branching {
    std::vector<double> accepted;
    double none = 1.0;

    void take(double acceptance) {
      accepted.push_back(none * acceptance);
      none *= 1.0 - acceptance;
    }
  };
  virtual Branching branching(const TokenTree& tree, int32_t node, RowPair& rows) const = 0;
};

}  // namespace treespec
