// SPDX-License-Identifier: Apache-2.0
// Model-free drafters: they read prompt and output and predict that what followed once follows
// again.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "treespec/array_view.h"
#include "treespec/decoder.h"
#include "treespec/source.h"

namespace treespec {

/// Nodes `(parent, token, logprob)`: parents first, -1 is the root, siblings distinct, `logprob`
/// conditional on the parent. What Trie takes.
struct ScoredTrie {
  std::vector<int32_t> parent;
  std::vector<int32_t> token;
  std::vector<float> logprob;

  int32_t size() const { return static_cast<int32_t>(token.size()); }
};

/// Settings of NgramIndex.
struct NgramOptions {
  int32_t max_ngram = 4;  ///< longest context looked up, in [min_ngram, 16]
  int32_t min_ngram = 1;  ///< shortest, >= 1
  /// Escape mass: weight of "something not seen yet" against hits of weight 1. Larger is humbler.
  double kappa = 1.0;
  int32_t max_hits = 64;  ///< latest occurrences read per draft, >= 1
  double recency = 1.0;   ///< weight of a hit = recency^(age / 100 tokens), in (0, 1]; 1: all equal
};

/// Prompt lookup. Remembers where every n-gram of the text ended.
///
/// `draft` takes the longest n for which the last n tokens occurred before, and merges what
/// followed each occurrence into a trie; P(child | node) = c(child) / (c(node) + kappa), c = weight
/// of the occurrences that pass. An occurrence whose continuation reaches the end of the text goes
/// on by copying itself, so that loops of any period are predicted to any depth. Memory: about 4 +
/// 12 * (number of n) bytes per token.
class NgramIndex {
 public:
  explicit NgramIndex(const NgramOptions& options = {});

  /// O(number of n) per token, amortised. Throws InvalidArgument for a negative id, adding nothing.
  void append(ArrayView<const int32_t> token_ids);
  /// The `node_budget` most probable nodes of depth <= `max_depth`, in the builders' total order
  /// (probability down, depth, parent, token id). Empty when no n-gram recurs.
  ScoredTrie draft(int32_t max_depth, int32_t node_budget) const;
  int64_t size() const { return static_cast<int64_t>(text_.size()); }
  void clear();

 private:
  // Occurrences of one n-gram form a list through `previous`, latest first. The table is open
  // addressed and keeps the latest end alone: its key is read from the text.
  struct Table {
    std::vector<int32_t> slot;  // [power of two], end of the latest occurrence or -1
    std::vector<int32_t>
        previous;  // [text]: end of the occurrence before the one ending here, or -1
    int64_t used = 0;
  };

  size_t find_slot(const Table& table, int32_t n, int32_t end) const;
  void grow(Table& table, int32_t n) const;
  std::vector<int32_t> latest_hits() const;

  NgramOptions options_;
  std::vector<int32_t> text_;
  std::vector<Table> tables_;  // [max_ngram - min_ngram + 1]
};

/// Settings of SuffixIndex. The paper's: alpha 1, beta 0, min_token_prob 0.1, no escape mass. Ours
/// draft more, with scores that agree with what is accepted (on code and prose, within a third).
struct SuffixOptions {
  int32_t max_match = 64;        ///< longest suffix of the text that is matched, in [1, 1024]
  int32_t max_depth = 64;        ///< deepest node ever drafted, in [1, 1024]
  double alpha = 2.0;            ///< a match of length p may draft alpha * p + beta nodes, >= 0
  double beta = 4.0;             ///< see alpha, >= 0
  double min_token_prob = 0.02;  ///< nodes of lower path probability are not drafted, in [0, 1]
  double kappa = 2.0;            ///< escape mass, divided by the matched length (see SuffixIndex)
  int32_t max_children = 128;    ///< children read per node, those seen first, >= 1
};

/// Suffix automaton over the text, online. Source: SuffixDecoding (Oliaro et al., 2024, arXiv
/// 2411.04975); the automaton is Blumer et al., 1985.
///
/// `draft` tries every length at which the end of the text occurred before, grows the most probable
/// nodes below each, and keeps the draft of the largest sum of node probabilities (its expected
/// accepted length); ties go to the longer match.
/// P(child | node) = c(child) / (c(node) + kappa / m): c = exact occurrence counts (of the node:
/// those with a successor), m = length of the node's whole context, match + depth. Longer contexts
/// are more reliable, hence the division.
class SuffixIndex {
 public:
  explicit SuffixIndex(const SuffixOptions& options = {});

  /// O(1) amortised for the automaton plus one count per suffix class of length up to max_match +
  /// max_depth. Throws InvalidArgument for a negative id, adding nothing.
  void append(ArrayView<const int32_t> token_ids);
  /// At most `node_budget` nodes of depth <= `max_depth`, in the builders' total order.
  ScoredTrie draft(int32_t max_depth, int32_t node_budget) const;
  int64_t size() const { return size_; }
  void clear();

  /// Length of the longest suffix of the text that also ends earlier, at most max_match.
  int32_t match_length() const;
  /// Occurrences of a string of at most max_match + max_depth tokens in the text.
  int64_t count(ArrayView<const int32_t> token_ids) const;

 private:
  struct State {
    int32_t length;    // of the longest string of the class
    int32_t link;      // state of the longest suffix in another class; -1 for the empty string
    int32_t count;     // occurrences; kept for classes with a string of at most `horizon` tokens
    int32_t last_end;  // where the latest occurrence ends; kept like count
    int32_t first_edge, last_edge;  // list in order of first appearance, -1: none
    int32_t num_edges;
  };
  struct Edge {
    int32_t token, target, next;
  };

  int32_t horizon() const { return options_.max_match + options_.max_depth; }
  int32_t find_edge(int32_t state, int32_t token) const;
  void add_edge(int32_t state, int32_t token, int32_t target);
  void hash_edge(int32_t state, int32_t edge);
  void extend(int32_t token);
  void count_suffixes();
  ScoredTrie grow(int32_t state, int32_t match, int32_t max_depth, int32_t node_budget,
                  double* score) const;

  SuffixOptions options_;
  std::vector<State> states_;
  std::vector<Edge> edges_;
  std::vector<int64_t> edge_slot_;  // hash of the edges of states with many: state << 32 | edge
  int64_t hashed_edges_ = 0;
  int64_t size_ = 0;
  int32_t last_ = 0;         // state of the whole text
  int32_t far_ = 0;          // state of its suffix of horizon tokens (or of all)
  int32_t match_state_ = 0;  // state of its suffix of max_match tokens (or of all)
};

/// DraftModel over NgramIndex. The text is the prompt and what was observed.
class NgramDraft final : public DraftModel {
 public:
  explicit NgramDraft(const NgramOptions& options = {}) : index_(options) {}
  void begin(ArrayView<const int32_t> prompt, const RowsView& states) override;
  CandidateSource& draft(const DraftRequest& request) override;
  void observe(ArrayView<const int32_t> token_ids, const RowsView& states) override;
  const NgramIndex& index() const { return index_; }

 private:
  NgramIndex index_;
  std::optional<Trie> trie_;  // of the last draft
};

/// DraftModel over SuffixIndex. The text is the prompt and what was observed.
class SuffixDraft final : public DraftModel {
 public:
  explicit SuffixDraft(const SuffixOptions& options = {}) : index_(options) {}
  void begin(ArrayView<const int32_t> prompt, const RowsView& states) override;
  CandidateSource& draft(const DraftRequest& request) override;
  void observe(ArrayView<const int32_t> token_ids, const RowsView& states) override;
  const SuffixIndex& index() const { return index_; }

 private:
  SuffixIndex index_;
  std::optional<Trie> trie_;  // of the last draft
};

}  // namespace treespec
