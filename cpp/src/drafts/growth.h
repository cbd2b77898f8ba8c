// SPDX-License-Identifier: Apache-2.0
// Best-first growth of a scored trie, shared by the model-free drafters.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

#include "treespec/drafts.h"
#include "treespec/error.h"

namespace treespec::drafts {

/// A possible node; `Place` is where the drafter stands after it.
template <class Place>
struct Candidate {
  double path_prob;
  float logprob;
  int32_t depth, parent, token;
  Place place;
};

/// Pops the most probable candidate until `node_budget` nodes are out. Order: probability down,
/// depth, parent (pop order), token id. `children(place, depth, emit)` calls `emit(token, prob,
/// place)` with the conditional probability. Returns the sum of path probabilities.
template <class Place, class Children>
double grow_trie(const Place& root, int32_t max_depth, int32_t node_budget, double min_path_prob,
                 Children children, ScoredTrie& trie) {
  using Node = Candidate<Place>;
  const auto later = [](const Node& a, const Node& b) {
    return std::tuple(-a.path_prob, a.depth, a.parent, a.token) >
           std::tuple(-b.path_prob, b.depth, b.parent, b.token);
  };
  std::vector<Node> heap;
  double path_prob = 1.0;
  int32_t depth = 0, parent = -1;
  const auto emit = [&](int32_t token, double prob, const Place& place) {
    const double child_prob = path_prob * prob;
    if (child_prob < min_path_prob) return;
    heap.push_back(
        {child_prob, static_cast<float>(std::log(prob)), depth + 1, parent, token, place});
    std::push_heap(heap.begin(), heap.end(), later);
  };
  double score = 0.0;
  if (max_depth > 0 && node_budget > 0) children(root, 0, emit);
  while (!heap.empty() && trie.size() < node_budget) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const Node node = heap.back();
    heap.pop_back();
    trie.parent.push_back(node.parent);
    trie.token.push_back(node.token);
    trie.logprob.push_back(node.logprob);
    score += node.path_prob;
    path_prob = node.path_prob;
    depth = node.depth;
    parent = trie.size() - 1;
    if (depth < max_depth && trie.size() < node_budget) children(node.place, depth, emit);
  }
  return score;
}

inline void check_request(const char* who, int32_t max_depth, int32_t node_budget) {
  TREESPEC_CHECK(max_depth >= 0, who, ": max_depth must be at least 0, got ", max_depth);
  TREESPEC_CHECK(node_budget >= 0, who, ": node_budget must be at least 0, got ", node_budget);
}

/// Positions are int32; both indexes stop well before they would wrap.
constexpr int64_t kMaxTokens = int64_t{1} << 29;

inline void check_append(const char* who, int64_t size, ArrayView<const int32_t> token_ids) {
  TREESPEC_CHECK(size + token_ids.size() <= kMaxTokens, who, ": text must have at most ",
                 kMaxTokens, " tokens, got ", size + token_ids.size());
  for (const int32_t token : token_ids) {
    TREESPEC_CHECK(token >= 0, who, ": token ids must be at least 0, got ", token);
  }
}

}  // namespace treespec::drafts
