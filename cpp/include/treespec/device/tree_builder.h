// SPDX-License-Identifier: Apache-2.0
// Step 2 of a round on the device: trees of a batch, each within its own node budget.
#pragma once

#include <cstddef>
#include <cstdint>

#include "treespec/device/trees.h"
#include "treespec/source.h"
#include "treespec/stream.h"

namespace treespec::device {

/// Largest node budget of a builder on the device.
constexpr int32_t kMostDrafted = 1024;

/// Candidate lists of a batch in device memory, ranked as device::rank_candidates leaves them:
/// logprob falls, equal ones by ascending token; tokens of a list distinct and >= 0; -inf pads.
/// Log-probabilities above 1e-3 and NaN are reported as kNotANumber where they are read, rows and
/// states out of range as kOutOfBounds.
struct ListSource {
  SourceKind kind = SourceKind::kMarginals;  ///< no kTrie
  int32_t depth = 0;                         ///< deepest drafted node of the tables
  int32_t num_rows = 1;  ///< kTransitions: R; kExpander: rows of a sequence, one per frontier node
  int32_t width = 0;     ///< K, at most kMostCandidates
  /// kMarginals [batch, depth, width], kTransitions [batch, depth, num_rows, width],
  /// kExpander [batch, num_rows, width]; fewer than 2^31 entries per sequence.
  const int32_t* token = nullptr;
  const float* logprob = nullptr;
  /// As treespec::Transitions; kExpander: FrontierNode::state of the child, null: 0.
  const int32_t* next = nullptr;
};

/// What a batch of trees is built for. Device memory; null where not wanted.
struct BuildRequest {
  const int32_t* node_budget = nullptr;  ///< [batch], in [0, trees.max_nodes - 1]
  const int32_t* root_token = nullptr;   ///< [batch]; null: 0
};

/// Builder `dtree`: the node_budget[b] best prefixes of depth <= `max_depth` in the total order, in
/// one launch. `lists`: kMarginals or kTransitions. Every array of `trees` is written; max_draws
/// must be at least max_nodes - 1. Equal to best-first growth on the CPU, ties included.
/// kOutOfBounds: a budget beyond the envelope, which cuts it. InvalidArgument: max_nodes - 1 above
/// kMostDrafted, shapes out of range.
/// Source: "DDTree: diffusion draft trees", 2026, arXiv 2604.12989, propositions 1 and 2; the
/// parallel form is ours.
void build_best_first(Stream stream, const ListSource& lists, int32_t max_depth,
                      const BuildRequest& request, const Trees& trees, uint32_t* status);

}  // namespace treespec::device
