// SPDX-License-Identifier: Apache-2.0
// What every growth needs: a frontier with hand-over numbers, and checked rows.
#pragma once

#include <vector>

#include "shared/scores.hd.h"
#include "treespec/tree_builder.h"

namespace treespec {

using shared::child_score;

/// Keeps the frontier and numbers its nodes in order of hand-over.
class FrontierGrowth : public TreeGrowth {
 public:
  ArrayView<const FrontierNode> frontier() const final { return frontier_; }
  /// Checks count and values on the way, and lets the builder grow; after an error it is of no use.
  void supply(ArrayView<const CandidateRow> rows) final;
  /// Once, with an empty frontier.
  TokenTree finish() final;

 protected:
  /// The tree, when growing is over.
  virtual TokenTree assemble() = 0;

  /// Called with row i right after it was checked, in order: long rows are still in the cache then.
  virtual void take(int64_t i, const CandidateRow& row) = 0;
  /// Called when all rows were taken; must `clear_frontier()` and may hand over anew.
  virtual void grow(ArrayView<const CandidateRow> rows) = 0;

  /// Adds a node to the frontier and returns its hand-over number. `parent_index` is its parent's
  /// number (-1 for the root).
  int32_t hand_over(int32_t parent_index, int32_t token, int32_t depth, int32_t state) {
    frontier_.push_back({handed_, parent_index, token, depth, state});
    return handed_++;
  }
  void clear_frontier() { frontier_.clear(); }

 private:
  std::vector<FrontierNode> frontier_;
  int32_t handed_ = 0;
  bool finished_ = false;
};

}  // namespace treespec
