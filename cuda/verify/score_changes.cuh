// SPDX-License-Identifier: Apache-2.0
// Scores that differ from the model's: bias, penalties, allowed tokens, in the order and arithmetic
// of cpp/src/sampling.cc. What the history says of a token is counted once per round in a table;
// what a node's own path adds, and the change itself, is worked out where a score is read.
#pragma once

#include <limits>

#include "tree.cuh"
#include "treespec/device/verify.h"

namespace treespec::device {

/// An entry of the table of a sequence.
struct TokenUse {
  static constexpr uint32_t kSeen = 1, kBiased = 2;
  static constexpr int kCountShift = 2;  // above: how often it came after the prompt
};

/// Counts the history of every sequence, and marks biased tokens. The table was zeroed.
struct CountHistory {
  static constexpr int kThreads = 256;
  ScoreChanges changes;
  int32_t vocab_size;
  uint32_t* table;  // [batch, vocab_size]

  TREESPEC_DEVICE void operator()() const {
    const int b = simt::block();
    uint32_t* own = table + int64_t{b} * vocab_size;
    const int32_t claimed = changes.history != nullptr ? changes.history_length[b] : 0;
    const int32_t length = claimed < changes.max_history ? claimed : changes.max_history;
    for (int32_t i = simt::thread(); i < length; i += kThreads) {
      const int32_t token = changes.history[int64_t{b} * changes.max_history + i];
      if (token < 0 || token >= vocab_size) continue;  // e.g. image placeholders beyond the head
      simt::atomic_or(own + token, TokenUse::kSeen);
      if (i >= changes.prompt_length[b]) {
        simt::atomic_add(own + token, 1u << TokenUse::kCountShift);
      }
    }
    for (int32_t i = simt::thread(); i < changes.num_biases; i += kThreads) {
      const int32_t token = changes.bias_token[int64_t{b} * changes.num_biases + i];
      if (token >= 0 && token < vocab_size) simt::atomic_or(own + token, TokenUse::kBiased);
    }
  }
};

inline size_t use_table_bytes(const ScoreChanges& changes, int32_t batch, int64_t vocab_size) {
  if (changes.penalties == nullptr && changes.num_biases == 0) return 0;
  return sizeof(uint32_t) * static_cast<size_t>(batch) * static_cast<size_t>(vocab_size);
}

/// Fills a table at `memory` where the changes need one; null where they do not.
inline const uint32_t* count_history(Stream stream, const ScoreChanges& changes, int32_t batch,
                                     int32_t vocab_size, void* memory) {
  const size_t bytes = use_table_bytes(changes, batch, vocab_size);
  if (bytes == 0) return nullptr;
  auto* table = static_cast<uint32_t*>(memory);
  simt::memset_async(stream, table, 0, bytes);
  simt::launch(stream, {batch, 1, 0}, CountHistory{changes, vocab_size, table});
  return table;
}

/// How often a token is on the path to a node, the root left out; `node` counts in the sequence.
TREESPEC_DEVICE int32_t times_on_path(const int32_t* token, const int32_t* parent, int32_t node,
                                      int32_t wanted) {
  int32_t times = 0;
  while (node > 0) {
    times += token[node] == wanted ? 1 : 0;
    const int32_t above = parent[node];
    node = above < node ? above : 0;  // data out of place must not hold us up
  }
  return times;
}

/// The changes at one node.
struct NodeChanges {
  const uint32_t* use = nullptr;      // of the sequence; null: neither bias nor penalties
  const uint32_t* allowed = nullptr;  // of the node; null: all
  const int32_t* bias_token = nullptr;
  const double* bias = nullptr;
  int32_t num_biases = 0;
  Penalties penalties;
  const int32_t* token = nullptr;   // of the tree
  const int32_t* parent = nullptr;  // of the tree
  int32_t node = 0;

  TREESPEC_DEVICE bool any() const { return use != nullptr || allowed != nullptr; }

  TREESPEC_DEVICE static NodeChanges of(const ScoreChanges& changes, const uint32_t* table,
                                        const Trees& trees, int32_t vocab_size, int32_t b,
                                        int32_t node) {
    const int64_t first = int64_t{b} * trees.max_nodes;
    NodeChanges out;
    out.token = trees.token + first;
    out.parent = trees.parent + first;
    out.node = node;
    if (table != nullptr) {
      out.use = table + int64_t{b} * vocab_size;
      out.num_biases = changes.num_biases;
      out.bias_token = changes.bias_token + int64_t{b} * changes.num_biases;
      out.bias = changes.bias + int64_t{b} * changes.num_biases;
      if (changes.penalties != nullptr) out.penalties = changes.penalties[b];
    }
    if (changes.allowed != nullptr) {
      out.allowed = changes.allowed + (first + node) * ((vocab_size + 31) / 32);
    }
    return out;
  }

  /// The score of a token.
  TREESPEC_DEVICE float apply(float score, int32_t wanted) const {
    if (use != nullptr) {
      const uint32_t seen = use[wanted];
      const int32_t on_path = times_on_path(token, parent, node, wanted);
      if (seen != 0 || on_path > 0) score = changed(score, wanted, seen, on_path);
    }
    const bool out = allowed != nullptr && (allowed[wanted / 32] >> (wanted % 32) & 1u) == 0;
    return out ? -std::numeric_limits<float>::infinity() : score;
  }

 private:
  TREESPEC_DEVICE float changed(float score, int32_t wanted, uint32_t seen, int32_t on_path) const {
    if ((seen & TokenUse::kBiased) != 0) {
      for (int32_t i = 0; i < num_biases; ++i) {
        if (bias_token[i] == wanted) score += static_cast<float>(bias[i]);
      }
    }
    const bool any_penalty =
        penalties.repetition != 1.0 || penalties.presence != 0.0 || penalties.frequency != 0.0;
    if (!any_penalty || ((seen & TokenUse::kSeen) == 0 && on_path == 0)) return score;
    if (penalties.repetition != 1.0) {
      const auto repetition = static_cast<float>(penalties.repetition);
      score = score < 0.0f ? score * repetition : score / repetition;
    }
    const int32_t generated = static_cast<int32_t>(seen >> TokenUse::kCountShift) + on_path;
    if (generated == 0) return score;
    score -= static_cast<float>(penalties.presence);
    score -= static_cast<float>(penalties.frequency) * static_cast<float>(generated);
    return score;
  }
};

}  // namespace treespec::device
