// SPDX-License-Identifier: Apache-2.0
#include "builders/growth.h"

#include <algorithm>

#include "row_ops.h"
#include "treespec/error.h"

namespace treespec {

TokenTree FrontierGrowth::finish() {
  TREESPEC_CHECK(frontier_.empty() && !finished_,
                 "TreeGrowth::finish: must be called once, after the frontier is empty");
  finished_ = true;
  return assemble();
}

void FrontierGrowth::supply(ArrayView<const CandidateRow> rows) {
  TREESPEC_CHECK(!frontier_.empty(),
                 "TreeGrowth::supply: the tree is grown, it takes no more rows");
  TREESPEC_CHECK(rows.size() == static_cast<int64_t>(frontier_.size()),
                 "TreeGrowth::supply: rows must be one per frontier node (", frontier_.size(),
                 "), got ", rows.size());
  for (int64_t i = 0; i < rows.size(); ++i) {
    const int32_t looked_at = rows[i].ranked ? std::min(rows[i].size, 1) : rows[i].size;
    TREESPEC_CHECK(row::all_at_most(rows[i].logprob, looked_at, shared::kLargestLogprob),
                   "TreeGrowth::supply: log-probabilities must be <= 0 and not NaN, row ", i,
                   " breaks this");
    take(i, rows[i]);
  }
  grow(rows);
}

}  // namespace treespec
