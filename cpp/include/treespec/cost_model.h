// SPDX-License-Identifier: Apache-2.0
// CostModel: what the parts of a round cost on one machine, as `treespec tune` measures it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace treespec {

/// Seconds by number of rows, measured at some of them.
struct CostCurve {
  std::vector<int32_t> rows;    ///< rising, from 1 on
  std::vector<double> seconds;  ///< as many, above 0

  /// Linear between two measured numbers and beyond the last one, flat below the first. A number
  /// that is slower than a larger one is taken to be padded to it: a falling stretch is cut off.
  double at(double num_rows) const;
  /// Adds `share` times the seconds of r rows to out[r - 1], for all of `out`.
  void add_to(std::vector<double>& out, double share) const;

 private:
  /// On the line that ends at measured number `high`.
  double line_at(size_t high, double num_rows) const;
  /// The padded envelope: the cheapest of this and all larger numbers of rows.
  double padded(size_t i) const;
};

/// One target forward: the rows of all sequences together, behind so many committed tokens each.
struct TargetCurve {
  int32_t context;
  int32_t batch;
  CostCurve curve;
};

/// Seconds of a pair on a machine. Numbers are not checked one by one: `check_costs` does.
struct CostModel {
  std::vector<TargetCurve> target;  ///< at least one; every context for every batch
  CostCurve draft_call;             ///< one pass of the drafter; empty: it costs nothing
  bool drafts_by_level = false;     ///< a call for each level of a tree, else one for all
  double drafted_round_seconds =
      0.0;                           ///< build, mask, verify, commit, and what else drafting costs
  double plain_round_seconds = 0.0;  ///< the same for a root alone

  /// `[r - 1]`: one target forward over r = 1 .. `most_rows` rows of `batch` sequences. Linear in
  /// context and batch between what was measured, the nearest one outside.
  std::vector<double> target_seconds(double context, int32_t batch, int32_t most_rows) const;
  /// The drafter's calls for a tree of `depth` levels with `rows_per_call` nodes each; the first
  /// one also computes the `backlog` of tokens that were committed since the last.
  double draft_seconds(int32_t depth, double rows_per_call, double backlog) const;
  /// The most rows of one sequence that were measured.
  int32_t most_rows() const;
};

/// Throws InvalidArgument, naming the field and the value, for numbers that no measurement gives.
void check_costs(const CostModel& costs);

}  // namespace treespec
