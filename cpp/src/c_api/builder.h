// SPDX-License-Identifier: Apache-2.0
// Growing trees from C: options, batches of candidates, frontiers.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "c_api/handles.h"
#include "treespec/source.h"
#include "treespec/token_tree.h"
#include "treespec/tree_builder.h"
#include "treespec/treespec_c.h"

namespace treespec::c {

/// Checked options; those of _init for NULL.
treespec_build_options build_options_of(const char* who, const treespec_build_options* options);

std::unique_ptr<TreeGrowth> begin_growth(const treespec_builder& builder,
                                         const treespec_build_options& options, int32_t max_depth);
/// The tree of a growth with the root's token, as a handle.
treespec_tree* finish_growth(TreeGrowth& growth, int32_t root_token);
/// A whole tree over one source.
treespec_tree* grow(const treespec_builder& builder, CandidateSource& source,
                    const treespec_build_options& options);

/// A batch for `num_rows` nodes as rows of the core. Checked: its shape, that the tokens of a row
/// are distinct, and that ranked rows are; the log-probabilities are the builder's business.
std::vector<CandidateRow> candidate_rows(const char* who, const treespec_candidates& batch,
                                         int64_t num_rows);

std::vector<treespec_frontier_node> c_frontier(ArrayView<const FrontierNode> nodes,
                                               int32_t root_token);

}  // namespace treespec::c
