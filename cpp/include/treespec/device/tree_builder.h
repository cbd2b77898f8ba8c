// SPDX-License-Identifier: Apache-2.0
// Step 2 of a round on the device: trees of a batch, each within its own node budget.
#pragma once

#include <cstddef>
#include <cstdint>

#include "treespec/device/scores.h"
#include "treespec/device/trees.h"
#include "treespec/rng.h"
#include "treespec/source.h"
#include "treespec/stream.h"
#include "treespec/token_tree.h"

namespace treespec::device {

/// Largest node budget of a builder on the device.
constexpr int32_t kMostDrafted = 1024;

/// Candidate lists of a batch in device memory, ranked as device::rank_candidates and score_lists
/// leave them: logprob falls, equal ones by ascending token; tokens of a list distinct and >= 0;
/// -inf pads. Log-probabilities above 1e-3 and NaN are reported as kNotANumber where they are read,
/// rows and states out of range as kOutOfBounds.
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

/// Nodes whose rows are wanted next, as FrontierNode, in order: sequence b has
/// `num_nodes[b]` of them, 0 when its tree is grown. Padding: index and parent -1, the rest 0.
struct Frontier {
  int32_t max_nodes = 0;         ///< room for a sequence
  int32_t* num_nodes = nullptr;  ///< [batch]
  int32_t* index = nullptr;      ///< [batch, max_nodes]: order of first hand-over, the root is 0
  int32_t* parent = nullptr;     ///< [batch, max_nodes]: its parent's index
  int32_t* token = nullptr;      ///< [batch, max_nodes]
  int32_t* depth = nullptr;      ///< [batch, max_nodes]
  int32_t* state = nullptr;      ///< [batch, max_nodes]
};

/// Options of `opt_tree` and `eagle2`; the defaults are opt_tree's with threshold 0.
struct LayerOptions {
  int32_t max_depth = INT32_MAX;  ///< for tables, at most their depth
  int32_t max_calls = INT32_MAX;  ///< of the drafter
  int32_t width = INT32_MAX;      ///< most nodes expanded per call, and children taken of each
  double threshold = 0.0;         ///< stop when a layer adds no more expected acceptance than this
  double floor = 0.0;             ///< nodes of a smaller path probability are left out; opt_tree's
  double width_ratio = 0.0;       ///< in [0, 1]; eagle2's
  bool constant_growth = false;   ///< eagle2's growth "constant"; width_ratio must be 0
};

/// Layered builders, one launch per layer: begin_layers, then grow_layer for every drafter call
/// until all frontiers are empty (a fixed number of times in a captured graph: a sequence without a
/// frontier is left alone), then finish_layers. Equal to layered growth on the CPU over the same
/// lists, ties included. `workspace` keeps the state in between. InvalidArgument: max_nodes - 1
/// above kMostDrafted, a frontier too small for `options` and max_nodes, shapes out of range.
/// Sources: Wang et al., "OPT-Tree", 2024, arXiv 2406.17276; Li et al., "EAGLE-2", 2024,
/// arXiv 2406.16858; the parallel form is ours.
size_t layers_workspace_bytes(int32_t batch, int32_t max_nodes);
/// Starts with the frontier [root]. kOutOfBounds: a budget beyond the envelope, which cuts it.
void begin_layers(Stream stream, const LayerOptions& options, const BuildRequest& request,
                  const Trees& trees, void* workspace, const Frontier& frontier, uint32_t* status);
/// Takes the rows of the frontier (kExpander: row i of a sequence is that of its node i), keeps the
/// budget's best and replaces the frontier.
void grow_layer(Stream stream, const LayerOptions& options, const ListSource& lists,
                const Trees& trees, void* workspace, const Frontier& frontier, uint32_t* status);
/// Writes every array of `trees`; max_draws must be at least max_nodes - 1.
void finish_layers(Stream stream, const BuildRequest& request, const void* workspace,
                   const Trees& trees);

/// The recorded laws of drawn trees, as a sparse DraftLaw: row b * max_nodes + i is that of node i
/// of sequence b, empty if it drew nothing.
struct LawOutput {
  int32_t* row_of_node = nullptr;  ///< [batch, max_nodes], -1: drew nothing
  int64_t* row_offset = nullptr;   ///< [batch * max_nodes + 1]
  int32_t* token = nullptr;        ///< room for batch * max_nodes * lists.width
  float* prob = nullptr;           ///< the same
};

/// How children come about, and the counters of their noise.
struct DrawOptions {
  Proposal proposal = Proposal::kDeterministic;
  const RoundKey* key = nullptr;  ///< [batch] in device memory; null for kDeterministic
};

/// A growth map in device memory, as treespec::GrowthMap: of chain, kary, sequoia, medusa_choices,
/// top_plus_one. A node budget or depth below the map's cuts it: places that are too deep are
/// dropped, then the first ones are kept.
struct ShapeSource {
  int32_t num_places = 0;           ///< root not counted, at most kMostDrafted
  const int32_t* parent = nullptr;  ///< [num_places]; kBadTree: not in [0, i]
  int32_t max_depth = INT32_MAX;    ///< for tables, at most their depth
  bool whole_levels = false;        ///< cut to levels that fit (default expansion vectors)
};

/// Fixed shapes, a drafter call per level: begin_shape, grow_shape as often as the map is deep,
/// finish_shape. Equal to fixed-shape growth on the CPU over the same lists: the likeliest tokens,
/// or draws from the law of a list (its tokens by ascending id, renormalised). Draws: purpose
/// kDraft at the path slot of a node, index = token (race) or number of the draw (kIid).
/// `list_width`: width of the lists, here and in finish_shape; only drawn trees need room for them.
size_t shape_workspace_bytes(int32_t batch, int32_t max_nodes, int32_t num_places,
                             int32_t list_width, Proposal proposal);
void begin_shape(Stream stream, const ShapeSource& shape, int32_t list_width, Proposal proposal,
                 const BuildRequest& request, const Trees& trees, void* workspace,
                 const Frontier& frontier, uint32_t* status);
/// Takes the rows of the frontier and fills their level: two launches for drawn trees, else one.
void grow_shape(Stream stream, const ShapeSource& shape, const DrawOptions& draws,
                const ListSource& lists, const Trees& trees, void* workspace,
                const Frontier& frontier, uint32_t* status);
/// Writes every array of `trees`, and the laws of a drawn tree: one launch, three for those.
void finish_shape(Stream stream, const ShapeSource& shape, int32_t list_width, Proposal proposal,
                  const BuildRequest& request, void* workspace, const Trees& trees,
                  const LawOutput& law);

/// Builders `rollouts` and `delayed`: a trunk of draws, then `num_paths` paths from its end.
struct PathOptions {
  int32_t num_paths = 3;  ///< at most kMostDrafted
  int32_t trunk = -1;     ///< L1; -1: by the budget, at most 8; 0 for rollouts
  int32_t branch = -1;    ///< L2; -1: by the budget, at most 8
  bool rollouts = false;  ///< no trunk, paths as long as the budget allows, fewer if it is small
  int32_t max_depth = INT32_MAX;  ///< for tables, at most their depth
  /// [batch, 3] in device memory, or null: num_paths, trunk and branch of every sequence, instead
  /// of trunk and branch above and within num_paths. Not for rollouts.
  const int32_t* lengths = nullptr;
};

/// As for shapes; `num_paths` also bounds the frontier. A budget that cannot hold what is asked for
/// is reported as kOutOfBounds and grows nothing, and so are lengths that are none: num_paths not
/// in [1, options.num_paths], or another one below 0. Only begin_paths reads lengths. Always kIid.
size_t paths_workspace_bytes(int32_t batch, int32_t max_nodes, int32_t list_width);
void begin_paths(Stream stream, const PathOptions& options, int32_t list_width,
                 const BuildRequest& request, const Trees& trees, void* workspace,
                 const Frontier& frontier, uint32_t* status);
void grow_paths(Stream stream, const PathOptions& options, const RoundKey* key,
                const ListSource& lists, const Trees& trees, void* workspace,
                const Frontier& frontier, uint32_t* status);
void finish_paths(Stream stream, int32_t list_width, const BuildRequest& request, void* workspace,
                  const Trees& trees, const LawOutput& law);

/// Builders `dyspec` (threshold 0, batched evaluation) and `dyspec_threshold`.
struct SlotOptions {
  int32_t max_depth = INT32_MAX;  ///< for tables, at most their depth
  double threshold = 0.0;         ///< slots of a lower value are not drawn; < 0: 1 / node budget
  Calibration calibration;        ///< of a draw by its probability among the tokens that were left
};

/// As for shapes; the frontier needs room for max_nodes - 1. Always kWithoutReplacement. Equal to
/// slot growth on the CPU: value down, depth up, parent up, draw up. More than 4 * max_nodes nodes
/// drawn on the way, or more slots of one value than the frontier or the last sort hold, are
/// reported as kOutOfBounds.
/// Source: Xiong et al., "DySpec", 2024, arXiv 2410.11744; the parallel form is ours.
size_t slots_workspace_bytes(int32_t batch, int32_t max_nodes, int32_t list_width);
void begin_slots(Stream stream, const SlotOptions& options, int32_t list_width,
                 const BuildRequest& request, const Trees& trees, void* workspace,
                 const Frontier& frontier, uint32_t* status);
/// Two launches.
void grow_slots(Stream stream, const SlotOptions& options, const RoundKey* key,
                const ListSource& lists, const Trees& trees, void* workspace,
                const Frontier& frontier, uint32_t* status);
/// Three launches.
void finish_slots(Stream stream, int32_t list_width, const BuildRequest& request, void* workspace,
                  const Trees& trees, const LawOutput& law, uint32_t* status);

}  // namespace treespec::device
