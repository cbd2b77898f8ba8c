// SPDX-License-Identifier: Apache-2.0
#include "builders/growth.h"

#include "row_ops.h"
#include "treespec/error.h"

namespace treespec {
namespace {

/// Rounding of a log-softmax may leave a certain token slightly above 0.
constexpr float kLargestLogprob = 1e-3f;

}  // namespace

void FrontierGrowth::supply(ArrayView<const CandidateRow> rows) {
  TREESPEC_CHECK(rows.size() == static_cast<int64_t>(frontier_.size()),
                 "TreeGrowth::supply: rows must be one per frontier node (", frontier_.size(),
                 "), got ", rows.size());
  for (int64_t i = 0; i < rows.size(); ++i) {
    TREESPEC_CHECK(row::all_at_most(rows[i].logprob, rows[i].size, kLargestLogprob),
                   "TreeGrowth::supply: log-probabilities must be <= 0 and not NaN, row ", i,
                   " breaks this");
  }
  grow(rows);
}

}  // namespace treespec
