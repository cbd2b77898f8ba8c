// SPDX-License-Identifier: Apache-2.0
// Reads the candidate lists of a sequence.
#pragma once

#include <limits>
#include <simt.cuh>

#include "shared/scores.hd.h"
#include "treespec/device/tree_builder.h"

namespace treespec::device {

constexpr float kImpossible = -std::numeric_limits<float>::infinity();

/// The lists of one sequence; entries are numbered through them.
struct Lists {
  const int32_t* token;
  const float* logprob;
  const int32_t* next;
  SourceKind kind;
  int32_t depth, num_rows, width;

  TREESPEC_DEVICE static Lists of_sequence(const ListSource& source, int b) {
    const int64_t lists = source.kind == SourceKind::kMarginals ? source.depth
                          : source.kind == SourceKind::kTransitions
                              ? int64_t{source.depth} * source.num_rows
                              : source.num_rows;
    const int64_t first = lists * source.width * b;
    return {source.token + first,
            source.logprob + first,
            source.next != nullptr ? source.next + first : nullptr,
            source.kind,
            source.depth,
            source.num_rows,
            source.width};
  }

  /// First entry of the list of a node with this depth, state, and place in the frontier; -1: the
  /// node has none. Sets `bad` when it has none by mistake.
  TREESPEC_DEVICE int32_t list_of(int32_t node_depth, int32_t state, int32_t place,
                                  bool& bad) const {
    if (kind == SourceKind::kExpander) {
      bad |= place >= num_rows;
      return place < num_rows ? place * width : -1;
    }
    if (node_depth >= depth) return -1;
    if (kind == SourceKind::kMarginals) return node_depth * width;
    const int32_t row = node_depth == 0 ? 0 : state;
    bad |= row < -1 || row >= num_rows;
    return row >= 0 && row < num_rows ? (node_depth * num_rows + row) * width : -1;
  }
  /// State of the node that an entry makes.
  TREESPEC_DEVICE int32_t state_of(int32_t entry) const {
    return next != nullptr ? next[entry] : 0;
  }
};

/// Whether a log-probability breaks the rules.
TREESPEC_DEVICE bool unsound(float logprob) { return !(logprob <= shared::kLargestLogprob); }

}  // namespace treespec::device
