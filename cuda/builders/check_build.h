// SPDX-License-Identifier: Apache-2.0
// Host checks that the builders share.
#pragma once

#include "treespec/device/candidates.h"
#include "treespec/device/tree_builder.h"
#include "treespec/error.h"

namespace treespec::device {

/// Throws InvalidArgument for trees that a builder cannot write.
inline void check_trees(const char* who, const Trees& trees) {
  TREESPEC_CHECK(trees.batch >= 0, who, ": trees.batch must be >= 0, got ", trees.batch);
  TREESPEC_CHECK(trees.max_nodes >= 1 && trees.max_nodes <= kMostDrafted + 1, who,
                 ": trees.max_nodes must be in [1, ", kMostDrafted + 1, "], got ", trees.max_nodes);
  TREESPEC_CHECK(trees.max_draws >= trees.max_nodes - 1, who,
                 ": trees.max_draws must be at least max_nodes - 1 = ", trees.max_nodes - 1,
                 ", got ", trees.max_draws);
}

/// Throws InvalidArgument for lists that a builder cannot read.
inline void check_lists(const char* who, const ListSource& lists) {
  TREESPEC_CHECK(lists.kind != SourceKind::kTrie, who,
                 ": lists must be Marginals, Transitions or rows of a frontier, got a Trie");
  TREESPEC_CHECK(lists.width >= 1 && lists.width <= kMostCandidates, who,
                 ": lists.width must be in [1, ", kMostCandidates, "], got ", lists.width);
  TREESPEC_CHECK(lists.depth >= 0 && lists.num_rows >= 1, who,
                 ": lists must have depth >= 0 and num_rows >= 1, got ", lists.depth, " and ",
                 lists.num_rows);
  const int64_t rows = lists.kind == SourceKind::kMarginals ? 1 : lists.num_rows;
  const int64_t levels = lists.kind == SourceKind::kExpander ? 1 : lists.depth;
  TREESPEC_CHECK(rows * levels <= INT32_MAX / lists.width, who,
                 ": lists must have fewer than 2^31 entries per sequence, got ", levels, " x ",
                 rows, " x ", lists.width);
  TREESPEC_CHECK(lists.kind != SourceKind::kTransitions || lists.next != nullptr, who,
                 ": lists.next must be given for Transitions");
}

}  // namespace treespec::device
