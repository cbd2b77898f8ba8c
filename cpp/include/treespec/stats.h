// SPDX-License-Identifier: Apache-2.0
// Counters of a generation: what was drafted, what was accepted, where the time went.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace treespec {

/// The six steps of a round, in order.
enum class Step : uint8_t { kDraft, kBuild, kMask, kTarget, kVerify, kCommit };
constexpr int kNumSteps = 6;
/// "draft", "build", "mask", "target", "verify", "commit".
std::string_view step_name(Step step);

/// Counts of one generation, or the sum of several. Only tokens that were emitted count: what a
/// stop condition cuts off an accepted path appears nowhere.
struct Stats {
  int64_t rounds = 0;  ///< target forwards over a tree; the prefill is not one
  int64_t emitted_tokens =
      0;                      ///< tokens emitted by rounds; the first one, from the prefill, is not
  int64_t drafted_nodes = 0;  ///< nodes below the root, over all trees
  /// Drafted nodes that the drafts' own scores promised to be accepted: sum of
  /// `expected_acceptance`, over whole trees, also where a stop condition cuts a path.
  double predicted_accepted = 0.0;
  std::vector<int64_t> accepted_by_depth;  ///< [d - 1]: rounds that accepted a node of depth d
  std::vector<int64_t> accepted_by_rank;   ///< [r]: accepted nodes that are the r-th child drawn
  double prefill_seconds = 0.0;            ///< target prefill, `DraftModel::begin`, first token
  /// Wall time by step. Model calls of an Expander count as draft, though the builder makes them.
  std::array<double, kNumSteps> seconds{};

  /// Mean tokens emitted per target forward, 0 before the first round.
  double block_efficiency() const {
    return rounds == 0 ? 0.0 : static_cast<double>(emitted_tokens) / static_cast<double>(rounds);
  }
  /// Drafted nodes that were emitted.
  int64_t accepted_nodes() const;
  /// Drafted nodes that the target computed for nothing.
  int64_t wasted_nodes() const { return drafted_nodes - accepted_nodes(); }
  /// Wall time of all rounds.
  double round_seconds() const;
  /// Tokens of rounds per second of rounds, 0 before the first round.
  double tokens_per_second() const;
  /// Adds the counts of another generation.
  Stats& operator+=(const Stats& other);
};

}  // namespace treespec
