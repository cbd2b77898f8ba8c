// SPDX-License-Identifier: Apache-2.0
// Step 5 of a round on the device: every verifier of the CPU, batched, with the same verdicts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "treespec/device/candidates.h"
#include "treespec/device/trees.h"
#include "treespec/stream.h"
#include "treespec/token_tree.h"

namespace treespec::device {

/// How a sequence's logits become laws, in device memory; see SamplingParams and Truncation.
struct Sampling {
  double temperature = 1.0;  ///< 0: the sequence is decoded greedily, whatever the verifier
  double top_p = 1.0;
  double min_p = 0.0;
  int32_t top_k = 0;
};

/// Penalties of a sequence; see SamplingParams.
struct Penalties {
  double repetition = 1.0;
  double presence = 0.0;
  double frequency = 0.0;
};

/// Scores that differ from the model's, in device memory. Order, as on the CPU: bias, repetition,
/// presence and frequency penalty, allowed tokens; then temperature and truncation.
struct ScoreChanges {
  const uint32_t* allowed = nullptr;    ///< [batch, max_nodes, ceil(V / 32)] bits; null: all tokens
  int32_t num_biases = 0;               ///< of a sequence
  const int32_t* bias_token = nullptr;  ///< [batch, num_biases]; -1: none
  const double* bias = nullptr;         ///< [batch, num_biases]
  const Penalties* penalties = nullptr;  ///< [batch]; null: none, the history is not read
  /// The committed text, the root included as its last token: [batch, max_history].
  const int32_t* history = nullptr;
  int32_t max_history = 0;
  const int32_t* history_length = nullptr;  ///< [batch]
  const int32_t* prompt_length = nullptr;   ///< [batch]
};

/// What a batch is verified from; all pointers are device memory.
struct VerifyInput {
  Trees trees;  ///< path_logprob is not read
  Proposal proposal = Proposal::kDeterministic;
  /// Rows [batch * max_nodes, V]; those of nodes that are not there are not read.
  RowsView logits;
  DraftLaw law;                        ///< row_of_node null: none
  const Sampling* sampling = nullptr;  ///< [batch]
  ScoreChanges changes;
  /// RoundKey of each sequence.
  const uint64_t* seed = nullptr;         ///< [batch]
  const uint32_t* sequence_id = nullptr;  ///< [batch]
  const int32_t* position = nullptr;      ///< [batch]; of the root
  bool lossy = false;                     ///< admit verifiers that change the text's distribution
};

/// What the rounds decided, in device memory; AcceptedPaths of kv_commit.h reads it.
struct Verdicts {
  int32_t max_depth = 0;            ///< longest path that fits
  int32_t* nodes = nullptr;         ///< [batch, max_depth + 1]: the root and the accepted nodes
  int32_t* num_accepted = nullptr;  ///< [batch]; the root not counted; -1: see the status
  int32_t* next_token = nullptr;    ///< [batch]
};

/// Deepest tree that `traversal` and `block` verify on the device.
constexpr int32_t kMostTraversalDepth = 128;

size_t verify_workspace_bytes(std::string_view verifier, const VerifyInput& input,
                              const Verdicts& verdicts);

/// Verifies every tree of the batch with the coins and the verdict of treespec::verify, bit for
/// bit. A launch reads all logits once and leaves sums of their blocks, another walks the trees:
/// one block of threads per sequence, which looks at logits again only where a token is drawn, or
/// where a row is truncated. Throws InvalidArgument for a verifier that would bias trees of this
/// proposal, one that needs a law that is not there, a lossy one that was not admitted, and
/// arguments out of range.
/// `status`: kNotANumber (NaN or +inf in a visited row), kEmptyRow, kBadTree (draws, tokens or law
/// rows out of place), kOutOfBounds (a path deeper, or a law row longer, than the envelope). Draft
/// rows are taken to be laws. Random draws consumed: those of the verifier on the CPU.
void verify(Stream stream, std::string_view verifier, const VerifyInput& input, void* workspace,
            size_t workspace_bytes, const Verdicts& verdicts, uint32_t* status);

}  // namespace treespec::device
