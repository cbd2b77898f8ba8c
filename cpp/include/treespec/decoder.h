// SPDX-License-Identifier: Apache-2.0
// The C++ way in: a service implements TargetModel and DraftModel; SpeculativeDecoder runs rounds.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "treespec/array_view.h"
#include "treespec/cost_model.h"
#include "treespec/growth_map.h"
#include "treespec/planned_builders.h"
#include "treespec/rng.h"
#include "treespec/sampling.h"
#include "treespec/source.h"
#include "treespec/stats.h"
#include "treespec/token_tree.h"
#include "treespec/tree_builder.h"
#include "treespec/verifier.h"

namespace treespec {

/// One target forward over all nodes of a tree. Everything is borrowed for the call.
struct TreeStep {
  const TokenTree& tree;               ///< token[0] is the last committed token
  ArrayView<const int32_t> positions;  ///< [N] prefix_length + depth
  ArrayView<const uint32_t>
      ancestor_bits;      ///< [N, ceil(N / 32)], see tree_mask.h for other formats
  int32_t prefix_length;  ///< committed tokens whose KV the target holds

  int32_t num_nodes() const { return tree.num_nodes(); }
  ArrayView<const int32_t> tokens() const { return tree.token; }
};

/// The model whose distribution must be reproduced: one sequence, its KV cache and one forward.
/// An object serves one generation at a time. Returned rows stay valid until its next call.
class TargetModel {
 public:
  virtual ~TargetModel() = default;
  virtual int32_t vocab_size() const = 0;
  /// Tokens that prompt and output may have together.
  virtual int32_t max_context() const { return INT32_MAX; }
  /// Starts a new sequence (whatever the last one left is dropped, also after an exception), keeps
  /// the KV of all `token_ids`, returns the logits after the last one, `[1, V]`.
  virtual RowsView prefill(ArrayView<const int32_t> token_ids) = 0;
  /// Logits `[N, V]`: row i follows node i, which sees the prefix, its ancestors and itself. KV
  /// rows of the nodes are kept, in node order, behind the prefix until `commit`.
  virtual RowsView forward(const TreeStep& step) = 0;
  /// Keeps the KV of these nodes (root first, ascending) behind the prefix, in order, and drops the
  /// other nodes. Comes once after every forward; kv_commit.h moves the rows.
  virtual void commit(ArrayView<const int32_t> nodes) = 0;
  /// Features of the last prefill `[prompt length, H]` or forward `[N, H]` for drafters that want
  /// them, read before `commit`; no rows if there are none.
  virtual RowsView states() { return {}; }
};

/// What a drafter is asked for in a round.
struct DraftRequest {
  int32_t root_token;              ///< last emitted token, observed already
  RoundKey key;                    ///< key.position: the root's absolute position
  int32_t max_depth;               ///< >= 1; deeper nodes could not be emitted
  int32_t node_budget;             ///< >= 1; nodes the tree will have at most
  const SamplingParams& sampling;  ///< e.g. for a draft temperature
  /// What the builder makes of the rows: it ranks them, or draws from them.
  Proposal proposal = Proposal::kDeterministic;
};

/// The model that proposes. Its committed state advances in `begin` and `observe` alone.
class DraftModel {
 public:
  virtual ~DraftModel() = default;
  /// Token ids are below this; 0: no vocabulary of its own. Must not exceed the target's.
  virtual int32_t vocab_size() const { return 0; }
  /// Tokens that prompt and output may have together.
  virtual int32_t max_context() const { return INT32_MAX; }
  /// Starts a new sequence. `states`: row i belongs to prompt[i]; no rows if the target gives none.
  virtual void begin(ArrayView<const int32_t> prompt, const RowsView& states) = 0;
  /// Candidates below the root, valid until the next call. Changes nothing that can be observed: a
  /// second call with the same request gives the same candidates.
  virtual CandidateSource& draft(const DraftRequest& request) = 0;
  /// Newly emitted tokens, in order and exactly once; the last one is the new root. `states`: row i
  /// is the target's state at the position before token_ids[i] (the old root and the accepted
  /// path), no rows for the first token after `begin` or if the target gives none.
  virtual void observe(ArrayView<const int32_t> token_ids, const RowsView& states) = 0;
};

/// Which tree, which verifier.
struct DecoderOptions {
  std::string builder = "opt_tree";
  BuilderOptions builder_options;
  std::string verifier = "auto";  ///< a name, or "auto" (auto_verifier)
  int32_t node_budget = 32;       ///< >= 0 drafted nodes; 0 decodes plainly
  bool lossy = false;             ///< permits a verifier that is lossless on no tree
  /// Measured costs of these models on this machine: every round then has the tree that pays, or
  /// none, up to `node_budget` nodes (budget_rule.h). Null: the same size in every round.
  std::shared_ptr<const CostModel> costs;
  AcceptanceTable acceptance;  ///< with costs: as measured, by depth and sibling rank
};

enum class StopReason : uint8_t { kMaxTokens, kStopToken, kStopCondition, kCancelled };
/// "max_tokens", "stop_token", "stop_condition", "cancelled".
std::string_view stop_reason_name(StopReason reason);

/// One request.
struct GenerateOptions {
  int32_t max_new_tokens = 128;
  SamplingParams sampling;
  uint64_t seed = 0;
  uint32_t sequence_id = 0;             ///< the caller's number; batch place must not enter here
  std::vector<int32_t> stop_token_ids;  ///< the first of them emitted is the last token
  /// Called with the output after each of its tokens, in order; true makes that token the last one.
  /// For stop strings: the cut falls where plain decoding would stop, also inside a path.
  std::function<bool(ArrayView<const int32_t> output)> stop_when;
  /// Receives every token once, as rounds commit them; false cancels.
  std::function<bool(ArrayView<const int32_t> token_ids)> on_tokens;
  /// Grammar: fills the allowed tokens after each node, `[N, ceil(V / 32)]` bits, zeroed before.
  /// `text`: prompt and output, whose last token is the root. The first call, after the prefill,
  /// has a tree of the last prompt token alone.
  std::function<void(const TokenTree& tree, ArrayView<const int32_t> text, uint32_t* allowed)>
      allow;
};

struct GenerateResult {
  std::vector<int32_t> token_ids;  ///< new tokens, a stop token included
  StopReason stop_reason = StopReason::kMaxTokens;
  Stats stats;
};

/// Runs rounds: draft, build, mask, target forward, verify, commit.
///
/// Draws: the first token at its own position (purpose kPosition, position = prompt length); every
/// round with key (seed, sequence_id, position of its root). A tree without drafted nodes is
/// verified by "target_only" ("greedy" at temperature 0) whatever the verifier. Hence with
/// "target_only" the text does not depend on drafter, tree, budget, or speculation being on.
///
/// Holds no state of a generation: after an exception, from a model or a callback, the next
/// `generate` starts afresh. A copy shares builder and verifier, and refers to the same models.
class SpeculativeDecoder {
 public:
  /// Models are borrowed; `draft` null decodes plainly. Throws InvalidArgument for unknown names
  /// and options, a verifier that would be biased on the builder's trees, a draft vocabulary that
  /// exceeds the target's, costs or acceptance out of range.
  SpeculativeDecoder(TargetModel& target, DraftModel* draft, const DecoderOptions& options = {});
  /// The same recipe for other models: one decoder per slot or thread, one builder for all.
  SpeculativeDecoder(const SpeculativeDecoder& recipe, TargetModel& target, DraftModel* draft);

  /// Continues `prompt`. Throws InvalidArgument before any work for an empty prompt, token ids
  /// outside the vocabulary, a text that would exceed a model's context, bad sampling parameters,
  /// or "greedy" at a temperature above 0; what models and callbacks throw passes through.
  GenerateResult generate(ArrayView<const int32_t> prompt,
                          const GenerateOptions& options = {}) const;

 private:
  class Run;

  TargetModel* target_;
  DraftModel* draft_;
  DecoderOptions options_;
  std::shared_ptr<const TreeBuilder> builder_;
  std::shared_ptr<const PlannedBuilders> planned_;  // with costs
};

}  // namespace treespec
