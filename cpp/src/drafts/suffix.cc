// SPDX-License-Identifier: Apache-2.0
// SuffixIndex: an online suffix automaton with exact occurrence counts.
#include <algorithm>
#include <cmath>

#include "drafts/growth.h"
#include "treespec/drafts.h"
#include "treespec/error.h"

namespace treespec {
namespace {

// States with more edges than this look them up in the hash; nearly all have one or two.
constexpr int32_t kScanEdges = 8;
constexpr size_t kFirstSlots = 64;
constexpr int32_t kLongest = 1024;

uint64_t hash_key(int32_t state, int32_t token) {
  uint64_t h =
      (static_cast<uint64_t>(static_cast<uint32_t>(state)) << 32 | static_cast<uint32_t>(token)) *
      0x9E3779B97F4A7C15u;
  h ^= h >> 32;
  h *= 0xFF51AFD7ED558CCDu;
  return h ^ h >> 32;
}

void check_options(const SuffixOptions& options) {
  TREESPEC_CHECK(options.max_match >= 1 && options.max_match <= kLongest,
                 "SuffixIndex: max_match must be in [1, ", kLongest, "], got ", options.max_match);
  TREESPEC_CHECK(options.max_depth >= 1 && options.max_depth <= kLongest,
                 "SuffixIndex: max_depth must be in [1, ", kLongest, "], got ", options.max_depth);
  TREESPEC_CHECK(options.alpha >= 0.0 && std::isfinite(options.alpha),
                 "SuffixIndex: alpha must be finite and at least 0, got ", options.alpha);
  TREESPEC_CHECK(options.beta >= 0.0 && std::isfinite(options.beta),
                 "SuffixIndex: beta must be finite and at least 0, got ", options.beta);
  TREESPEC_CHECK(options.min_token_prob >= 0.0 && options.min_token_prob <= 1.0,
                 "SuffixIndex: min_token_prob must be in [0, 1], got ", options.min_token_prob);
  TREESPEC_CHECK(options.kappa >= 0.0 && std::isfinite(options.kappa),
                 "SuffixIndex: kappa must be finite and at least 0, got ", options.kappa);
  TREESPEC_CHECK(options.max_children >= 1, "SuffixIndex: max_children must be at least 1, got ",
                 options.max_children);
}

}  // namespace

SuffixIndex::SuffixIndex(const SuffixOptions& options) : options_(options) {
  check_options(options);
  clear();
}

void SuffixIndex::clear() {
  states_.assign(1, {0, -1, 0, -1, -1, -1, 0});
  edges_.clear();
  edge_slot_.assign(kFirstSlots, -1);
  hashed_edges_ = size_ = 0;
  last_ = far_ = match_state_ = 0;
}

int32_t SuffixIndex::find_edge(int32_t state, int32_t token) const {
  const State& from = states_[static_cast<size_t>(state)];
  if (from.num_edges <= kScanEdges) {
    int32_t edge = from.first_edge;
    while (edge >= 0 && edges_[static_cast<size_t>(edge)].token != token) {
      edge = edges_[static_cast<size_t>(edge)].next;
    }
    return edge;
  }
  const size_t mask = edge_slot_.size() - 1;
  for (size_t slot = hash_key(state, token) & mask;; slot = (slot + 1) & mask) {
    const int64_t entry = edge_slot_[slot];
    if (entry < 0) return -1;
    const auto edge = static_cast<int32_t>(entry & 0xFFFFFFFF);
    if (entry >> 32 == state && edges_[static_cast<size_t>(edge)].token == token) return edge;
  }
}

void SuffixIndex::hash_edge(int32_t state, int32_t edge) {
  const auto insert = [this](int64_t entry) {
    const auto token = edges_[static_cast<size_t>(entry & 0xFFFFFFFF)].token;
    const size_t mask = edge_slot_.size() - 1;
    size_t slot = hash_key(static_cast<int32_t>(entry >> 32), token) & mask;
    while (edge_slot_[slot] >= 0) slot = (slot + 1) & mask;
    edge_slot_[slot] = entry;
  };
  if (2 * static_cast<size_t>(++hashed_edges_) > edge_slot_.size()) {
    std::vector<int64_t> old(edge_slot_.size() * 2, -1);
    old.swap(edge_slot_);
    for (const int64_t entry : old) {
      if (entry >= 0) insert(entry);
    }
  }
  insert(static_cast<int64_t>(state) << 32 | edge);
}

void SuffixIndex::add_edge(int32_t state, int32_t token, int32_t target) {
  const auto edge = static_cast<int32_t>(edges_.size());
  edges_.push_back({token, target, -1});
  State& from = states_[static_cast<size_t>(state)];
  (from.first_edge < 0 ? from.first_edge : edges_[static_cast<size_t>(from.last_edge)].next) = edge;
  from.last_edge = edge;
  ++from.num_edges;
  if (from.num_edges == kScanEdges + 1) {
    for (int32_t e = from.first_edge; e >= 0; e = edges_[static_cast<size_t>(e)].next) {
      hash_edge(state, e);
    }
  } else if (from.num_edges > kScanEdges) {
    hash_edge(state, edge);
  }
}

/// The textbook step: one state for the longer text, a clone where a class splits.
void SuffixIndex::extend(int32_t token) {
  const auto fresh = static_cast<int32_t>(states_.size());
  states_.push_back({states_[static_cast<size_t>(last_)].length + 1, 0, 0, -1, -1, -1, 0});
  int32_t state = last_, edge = -1;
  while (state >= 0 && (edge = find_edge(state, token)) < 0) {
    add_edge(state, token, fresh);
    state = states_[static_cast<size_t>(state)].link;
  }
  last_ = fresh;
  if (state < 0) return;

  const int32_t target = edges_[static_cast<size_t>(edge)].target;
  const int32_t length = states_[static_cast<size_t>(state)].length + 1;
  if (states_[static_cast<size_t>(target)].length == length) {
    states_[static_cast<size_t>(fresh)].link = target;
    return;
  }
  const auto clone = static_cast<int32_t>(states_.size());
  State split = states_[static_cast<size_t>(target)];
  int32_t copied = split.first_edge;
  split.length = length;
  split.first_edge = split.last_edge = -1;
  split.num_edges = 0;
  states_.push_back(split);
  for (; copied >= 0; copied = edges_[static_cast<size_t>(copied)].next) {
    const Edge original = edges_[static_cast<size_t>(copied)];
    add_edge(clone, original.token, original.target);
  }
  for (; state >= 0 && (edge = find_edge(state, token)) >= 0 &&
         edges_[static_cast<size_t>(edge)].target == target;
       state = states_[static_cast<size_t>(state)].link) {
    edges_[static_cast<size_t>(edge)].target = clone;
  }
  states_[static_cast<size_t>(target)].link = clone;
  states_[static_cast<size_t>(fresh)].link = clone;
}

/// Books the new end position for every suffix of at most `horizon` tokens.
void SuffixIndex::count_suffixes() {
  for (int32_t state = far_; state >= 0; state = states_[static_cast<size_t>(state)].link) {
    ++states_[static_cast<size_t>(state)].count;
    states_[static_cast<size_t>(state)].last_end = static_cast<int32_t>(size_ - 1);
  }
}

void SuffixIndex::append(ArrayView<const int32_t> token_ids) {
  drafts::check_append("SuffixIndex::append", size_, token_ids);
  // Where the text's suffix of at most `cap` tokens lives, one token later.
  const auto advance = [this](int32_t state, int32_t token, int32_t cap) {
    state = edges_[static_cast<size_t>(find_edge(state, token))].target;
    const int32_t link = states_[static_cast<size_t>(state)].link;
    return states_[static_cast<size_t>(link)].length >= cap ? link : state;
  };
  for (const int32_t token : token_ids) {
    extend(token);
    ++size_;
    far_ = advance(far_, token, horizon());
    match_state_ = advance(match_state_, token, options_.max_match);
    count_suffixes();
  }
}

int32_t SuffixIndex::match_length() const {
  if (size_ == 0) return 0;
  const State& repeated = states_[static_cast<size_t>(states_[static_cast<size_t>(last_)].link)];
  return std::min(repeated.length, options_.max_match);
}

int64_t SuffixIndex::count(ArrayView<const int32_t> token_ids) const {
  TREESPEC_CHECK(token_ids.size() <= horizon(), "SuffixIndex::count: string must have at most ",
                 horizon(), " tokens, got ", token_ids.size());
  int32_t state = 0;
  for (const int32_t token : token_ids) {
    const int32_t edge = find_edge(state, token);
    if (edge < 0) return 0;
    state = edges_[static_cast<size_t>(edge)].target;
  }
  return states_[static_cast<size_t>(state)].count;
}

/// The draft below a match of `match` tokens that ends in `state`.
ScoredTrie SuffixIndex::grow(int32_t state, int32_t match, int32_t max_depth, int32_t node_budget,
                             double* score) const {
  const auto children = [&](int32_t place, int32_t depth, auto emit) {
    const State& node = states_[static_cast<size_t>(place)];
    // What ends with the text has no successor there.
    const int32_t followed = node.count - (node.last_end == size_ - 1 ? 1 : 0);
    const double mass = followed + options_.kappa / (match + depth);
    int32_t left = options_.max_children;
    for (int32_t e = node.first_edge; e >= 0 && left > 0; --left) {
      const Edge& edge = edges_[static_cast<size_t>(e)];
      emit(edge.token, states_[static_cast<size_t>(edge.target)].count / mass, edge.target);
      e = edge.next;
    }
  };
  ScoredTrie trie;
  *score =
      drafts::grow_trie(state, max_depth, node_budget, options_.min_token_prob, children, trie);
  return trie;
}

ScoredTrie SuffixIndex::draft(int32_t max_depth, int32_t node_budget) const {
  drafts::check_request("SuffixIndex::draft", max_depth, node_budget);
  ScoredTrie best;
  if (size_ == 0) return best;
  max_depth = std::min(max_depth, options_.max_depth);
  double best_score = 0.0;
  // All lengths of one class have the same continuations, so its longest stands for it.
  const int32_t repeated = states_[static_cast<size_t>(last_)].link;
  int32_t state =
      states_[static_cast<size_t>(repeated)].length > options_.max_match ? match_state_ : repeated;
  for (; state > 0; state = states_[static_cast<size_t>(state)].link) {
    const int32_t match = std::min(states_[static_cast<size_t>(state)].length, options_.max_match);
    const double limit = options_.alpha * match + options_.beta;
    if (limit <= best_score) break;  // a node scores at most 1, shorter matches have fewer
    const auto budget = static_cast<int32_t>(std::min<double>(node_budget, limit));
    double score = 0.0;
    ScoredTrie trie = grow(state, match, max_depth, budget, &score);
    if (score <= best_score) continue;
    best_score = score;
    best = std::move(trie);
  }
  return best;
}

}  // namespace treespec
