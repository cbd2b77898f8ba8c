// SPDX-License-Identifier: Apache-2.0
// The best-first core: a heap of first children and next siblings over ranked candidate lists.
#pragma once

#include <memory>
#include <string_view>

#include "builders/scores.h"
#include "treespec/tree_builder.h"

namespace treespec {

/// The first `node_budget` prefixes of depth <= `max_depth` under the total order, popped in it.
/// For tables (Marginals, Transitions, Trie): rows must stay valid while the tree grows. Popping
/// yields the exact order, ties included: a skipped predecessor would itself be in the heap and
/// come first (trees.md 0.3). O(N log N).
std::unique_ptr<TreeGrowth> best_first_growth(int32_t node_budget, int32_t max_depth,
                                              const ScoreOptions& scores);

/// A deterministic builder of this core: options `max_depth` and those of the scores. `name` lives
/// for ever; `reads` says which sources, tables all of them.
std::unique_ptr<TreeBuilder> best_first_builder(std::string_view name, bool (*reads)(SourceKind),
                                                const BuilderOptions& options);

}  // namespace treespec
