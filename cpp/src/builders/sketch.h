// SPDX-License-Identifier: Apache-2.0
// A sampled tree in the making: its nodes, its draws, and the laws they were drawn from.
#pragma once

#include <cstdint>
#include <vector>

#include "builders/growth.h"
#include "builders/row_law.h"

namespace treespec {

/// Growth of trees whose nodes remember a path slot and their draws. Node 0 is the root; ids are in
/// order of creation until `order` gives the final one.
class SketchGrowth : public FrontierGrowth {
 protected:
  struct Node {
    int32_t token, parent, depth, state;
    float score;         // path_logprob
    uint32_t slot;       // path slot: names the node's noise
    int32_t index = -1;  // hand-over number, -1: not handed over
    int32_t law = -1;    // row of its recorded law
    std::vector<int32_t> draws;
  };

  SketchGrowth(Proposal proposal, const RoundKey& key) : proposal_(proposal), key_(key) {
    nodes_.push_back({0, -1, 0, 0, 0.0f, 0, -1, -1, {}});
  }

  /// Puts a node on the frontier.
  void request(int32_t node);
  /// Appends a child that carries candidate `entry` of the node's row; does not draw it.
  int32_t add_child(int32_t node, const CandidateRow& row, int32_t entry);
  /// The child of a node that was drawn with this token, or -1.
  int32_t drawn_child(int32_t node, int32_t token) const;
  /// Keeps the law for the verifier.
  void record_law(int32_t node, const RowLaw& law);
  /// The nodes in the tree, in final order, root first; parents before children. The default keeps
  /// all in order of creation.
  virtual std::vector<int32_t> order() const;
  TokenTree assemble() final;

  Proposal proposal_;
  RoundKey key_;
  std::vector<Node> nodes_;

 private:
  DraftRows laws_;
};

}  // namespace treespec
