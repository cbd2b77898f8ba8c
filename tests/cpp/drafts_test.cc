// SPDX-License-Identifier: Apache-2.0
// The model-free drafters against brute force over random strings of small alphabets.
#include "treespec/drafts.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <set>
#include <tuple>
#include <vector>

#include "check.h"
#include "treespec/error.h"

namespace {

using treespec::NgramIndex;
using treespec::NgramOptions;
using treespec::ScoredTrie;
using treespec::SuffixIndex;
using treespec::SuffixOptions;
using Tokens = std::vector<int32_t>;

constexpr double kTolerance = 1e-5;

Tokens random_text(std::mt19937& random, int32_t alphabet, int32_t length) {
  // Pieces of the past repeat now and then, so that long matches occur.
  Tokens text;
  while (static_cast<int32_t>(text.size()) < length) {
    if (text.size() > 8 && random() % 4 == 0) {
      const size_t begin = random() % (text.size() - 4);
      const size_t size = std::min<size_t>(4 + random() % 8, text.size() - begin);
      for (size_t i = 0; i < size; ++i) text.push_back(text[begin + i]);
    } else {
      text.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(alphabet)));
    }
  }
  text.resize(static_cast<size_t>(length));
  return text;
}

int64_t occurrences(const Tokens& text, const Tokens& string) {
  int64_t count = 0;
  for (size_t at = 0; at + string.size() <= text.size(); ++at) {
    count += std::equal(string.begin(), string.end(), text.begin() + static_cast<ptrdiff_t>(at));
  }
  return count;
}

bool ends_with(const Tokens& text, const Tokens& string) {
  return string.size() <= text.size() && std::equal(string.rbegin(), string.rend(), text.rbegin());
}

void check_trie(const ScoredTrie& trie, int32_t max_depth, int32_t node_budget) {
  CHECK(trie.size() <= node_budget);
  std::set<std::pair<int32_t, int32_t>> siblings;
  std::vector<int32_t> depth;
  for (int32_t i = 0; i < trie.size(); ++i) {
    CHECK(trie.parent[i] >= -1 && trie.parent[i] < i);
    CHECK(siblings.insert({trie.parent[i], trie.token[i]}).second);
    CHECK(trie.logprob[i] <= 0.0f && std::isfinite(trie.logprob[i]));
    depth.push_back(trie.parent[i] < 0 ? 1 : depth[trie.parent[i]] + 1);
    CHECK(depth.back() <= max_depth);
  }
}

/// A node of a brute-force draft: its path and its conditional probability.
struct Node {
  Tokens path;
  double prob, path_prob;
};

/// Best-first by (path probability, depth, token order along equal parents), like the builders.
template <class ChildProb>
std::vector<Node> brute_force_tree(int32_t alphabet, int32_t max_depth, int32_t budget,
                                   double min_path_prob, ChildProb child_prob) {
  struct Open {
    double path_prob;
    int32_t depth, parent, token;
    Node node;
  };
  std::vector<Open> open;
  std::vector<Node> result;
  const auto expand = [&](const Tokens& path, double path_prob, int32_t parent) {
    if (static_cast<int32_t>(path.size()) >= max_depth) return;
    for (int32_t t = 0; t < alphabet; ++t) {
      const double prob = child_prob(path, t);
      if (prob <= 0.0 || path_prob * prob < min_path_prob) continue;
      Tokens child = path;
      child.push_back(t);
      open.push_back({path_prob * prob,
                      static_cast<int32_t>(child.size()),
                      parent,
                      t,
                      {child, prob, path_prob * prob}});
    }
  };
  expand({}, 1.0, -1);
  while (!open.empty() && static_cast<int32_t>(result.size()) < budget) {
    const auto best = std::min_element(open.begin(), open.end(), [](const Open& a, const Open& b) {
      return std::tuple(-a.path_prob, a.depth, a.parent, a.token) <
             std::tuple(-b.path_prob, b.depth, b.parent, b.token);
    });
    const Node node = best->node;
    open.erase(best);
    result.push_back(node);
    expand(node.path, node.path_prob, static_cast<int32_t>(result.size()) - 1);
  }
  return result;
}

void check_same(const ScoredTrie& trie, const std::vector<Node>& expected) {
  CHECK_EQUAL(trie.size(), static_cast<int32_t>(expected.size()));
  std::vector<Tokens> paths;
  for (int32_t i = 0; i < trie.size(); ++i) {
    Tokens path = trie.parent[i] < 0 ? Tokens{} : paths[trie.parent[i]];
    path.push_back(trie.token[i]);
    paths.push_back(path);
    CHECK(path == expected[i].path);
    CHECK(std::abs(std::exp(trie.logprob[i]) - expected[i].prob) < kTolerance);
  }
}

// --- n-grams -------------------------------------------------------------------------------------

/// Ends of the earlier occurrences of the longest n-gram that has any, latest first.
Tokens brute_force_hits(const Tokens& text, const NgramOptions& options) {
  const auto last = static_cast<int32_t>(text.size()) - 1;
  Tokens hits;
  for (int32_t n = options.max_ngram; n >= options.min_ngram && hits.empty(); --n) {
    for (int32_t end = last - 1; end + 1 >= n; --end) {
      if (std::equal(text.end() - n, text.end(), text.begin() + end + 1 - n)) hits.push_back(end);
    }
  }
  if (static_cast<int32_t>(hits.size()) > options.max_hits) hits.resize(options.max_hits);
  return hits;
}

std::vector<Node> brute_force_ngram(const Tokens& text, const NgramOptions& options,
                                    int32_t alphabet, int32_t max_depth, int32_t budget) {
  const Tokens hits = text.empty() ? Tokens{} : brute_force_hits(text, options);
  if (hits.empty()) return {};
  const auto weight = [&](const Tokens& path) {
    double sum = 0.0;
    for (const int32_t end : hits) {
      Tokens copy = text;  // what follows the hit, copied onto the end of the text
      for (size_t i = 0; i < path.size(); ++i) copy.push_back(copy[end + 1 + i]);
      const double age = static_cast<double>(text.size() - 1) - end;
      if (ends_with(copy, path)) sum += std::pow(options.recency, age / 100.0);
    }
    return sum;
  };
  return brute_force_tree(alphabet, max_depth, budget, 0.0, [&](Tokens path, int32_t token) {
    const double of_node = weight(path);
    path.push_back(token);
    return weight(path) / (of_node + options.kappa);
  });
}

void an_ngram_draft_equals_brute_force(std::mt19937& random) {
  for (int trial = 0; trial < 400; ++trial) {
    const auto alphabet = static_cast<int32_t>(1 + random() % 5);
    const Tokens text = random_text(random, alphabet, static_cast<int32_t>(random() % 90));
    NgramOptions options;
    options.min_ngram = static_cast<int32_t>(1 + random() % 2);
    options.max_ngram = options.min_ngram + static_cast<int32_t>(random() % 4);
    options.kappa = 0.5 * (random() % 4);
    options.max_hits = random() % 2 == 0 ? 1000 : 3;
    options.recency = 1.0;
    NgramIndex index(options);
    size_t fed = 0;
    while (fed < text.size()) {
      const size_t size = std::min<size_t>(1 + random() % 20, text.size() - fed);
      index.append({text.data() + fed, static_cast<int64_t>(size)});
      fed += size;
    }
    CHECK_EQUAL(index.size(), static_cast<int64_t>(text.size()));
    const auto depth = static_cast<int32_t>(random() % 7);
    const auto budget = static_cast<int32_t>(random() % 20);
    const ScoredTrie trie = index.draft(depth, budget);
    check_trie(trie, depth, budget);
    check_same(trie, brute_force_ngram(text, options, alphabet, depth, budget));
  }
}

void recent_hits_weigh_more_when_asked() {
  NgramOptions options;
  options.recency = 0.5;
  NgramIndex index(options);
  Tokens text{1, 2, 3};
  for (int32_t i = 0; i < 300; ++i) text.push_back(100 + i);
  for (const int32_t token : {1, 2, 4, 9, 1, 2}) text.push_back(token);
  index.append(text);
  const ScoredTrie trie = index.draft(1, 8);
  CHECK_EQUAL(trie.size(), 2);
  CHECK_EQUAL(trie.token[0], 4);
  CHECK_EQUAL(trie.token[1], 3);
  CHECK(trie.logprob[0] > trie.logprob[1]);
}

void an_ngram_draft_follows_a_loop_to_any_depth() {
  NgramIndex index;
  index.append(Tokens{7, 8, 9, 7, 8});
  const ScoredTrie trie = index.draft(10, 10);
  CHECK(trie.token == (Tokens{9, 7, 8, 9, 7, 8, 9, 7, 8, 9}));
}

// --- suffixes ------------------------------------------------------------------------------------

/// Longest suffix, at most `limit`, that also ends before the last token.
int32_t brute_force_match(const Tokens& text, int32_t limit) {
  for (auto n = std::min<int32_t>(limit, static_cast<int32_t>(text.size()) - 1); n > 0; --n) {
    if (occurrences({text.begin(), text.end() - 1}, {text.end() - n, text.end()}) > 0) return n;
  }
  return 0;
}

std::vector<Node> brute_force_suffix(const Tokens& text, const SuffixOptions& options,
                                     int32_t alphabet, int32_t max_depth, int32_t node_budget) {
  std::vector<Node> best;
  double best_score = 0.0;
  for (int32_t match = brute_force_match(text, options.max_match); match > 0; --match) {
    const auto child_prob = [&](const Tokens& path, int32_t token) {
      Tokens context(text.end() - match, text.end());
      context.insert(context.end(), path.begin(), path.end());
      const int64_t followed = occurrences(text, context) - (ends_with(text, context) ? 1 : 0);
      const double mass =
          static_cast<double>(followed) + options.kappa / static_cast<double>(context.size());
      context.push_back(token);
      const int64_t count = occurrences(text, context);
      return count == 0 ? 0.0 : static_cast<double>(count) / mass;
    };
    const auto budget =
        static_cast<int32_t>(std::min<double>(node_budget, options.alpha * match + options.beta));
    const std::vector<Node> nodes =
        brute_force_tree(alphabet, std::min(max_depth, options.max_depth), budget,
                         options.min_token_prob, child_prob);
    double score = 0.0;
    for (const Node& node : nodes) score += node.path_prob;
    if (score <= best_score) continue;
    best_score = score;
    best = nodes;
  }
  return best;
}

void suffix_counts_equal_brute_force(std::mt19937& random) {
  for (int trial = 0; trial < 150; ++trial) {
    const auto alphabet = static_cast<int32_t>(1 + random() % 20);
    const Tokens text = random_text(random, alphabet, static_cast<int32_t>(1 + random() % 120));
    SuffixOptions options;
    options.max_match = static_cast<int32_t>(1 + random() % 6);
    options.max_depth = static_cast<int32_t>(1 + random() % 6);
    SuffixIndex index(options);
    for (size_t end = 0; end < text.size(); ++end) {
      index.append({text.data() + end, 1});
      const Tokens seen(text.begin(), text.begin() + static_cast<ptrdiff_t>(end) + 1);
      CHECK_EQUAL(index.match_length(), brute_force_match(seen, options.max_match));
    }
    const auto horizon = static_cast<size_t>(options.max_match + options.max_depth);
    for (int probe = 0; probe < 40; ++probe) {
      const size_t begin = random() % text.size();
      const size_t size = std::min(1 + random() % horizon, text.size() - begin);
      Tokens string(text.begin() + static_cast<ptrdiff_t>(begin),
                    text.begin() + static_cast<ptrdiff_t>(begin + size));
      if (random() % 4 == 0) string.back() = static_cast<int32_t>(random() % 20);
      CHECK_EQUAL(index.count(string), occurrences(text, string));
    }
    CHECK_EQUAL(index.count(Tokens{}), static_cast<int64_t>(text.size()));
  }
}

void a_suffix_draft_equals_brute_force(std::mt19937& random) {
  for (int trial = 0; trial < 400; ++trial) {
    const auto alphabet = static_cast<int32_t>(1 + random() % 14);
    const Tokens text = random_text(random, alphabet, static_cast<int32_t>(random() % 100));
    SuffixOptions options;
    options.max_match = static_cast<int32_t>(1 + random() % 12);
    options.max_depth = static_cast<int32_t>(1 + random() % 8);
    options.alpha = 0.5 * (random() % 5);
    options.beta = static_cast<double>(random() % 3);
    options.kappa = 0.25 * (random() % 5);
    options.min_token_prob = 0.05 * (random() % 4);
    SuffixIndex index(options);
    index.append(text);
    const auto depth = static_cast<int32_t>(random() % 10);
    const auto budget = static_cast<int32_t>(random() % 20);
    const ScoredTrie trie = index.draft(depth, budget);
    check_trie(trie, depth, budget);
    check_same(trie, brute_force_suffix(text, options, alphabet, depth, budget));
  }
}

void a_unary_text_stays_cheap_and_exact() {
  SuffixIndex index;
  index.append(Tokens(3000, 5));
  CHECK_EQUAL(index.match_length(), 64);
  CHECK_EQUAL(index.count(Tokens(128, 5)), 3000 - 127);
  const ScoredTrie trie = index.draft(64, 64);
  CHECK_EQUAL(trie.size(), 64);
}

// --- both ----------------------------------------------------------------------------------------

template <class Draft>
void a_drafter_is_unchanged_by_drafting(Draft&& drafted, Draft&& plain) {
  const Tokens prompt{1, 2, 3, 1, 2, 4, 1, 2, 3, 1, 2};
  const treespec::SamplingParams sampling;
  drafted.begin(prompt, {});
  plain.begin(prompt, {});
  const treespec::DraftRequest request{2, {0, 0, 10}, 4, 8, sampling};
  for (int i = 0; i < 3; ++i) drafted.draft(request);
  const treespec::FrontierNode root{0, -1, 0, 0, 0};
  const auto& first = drafted.draft(request).rows({&root, 1})[0];
  const Tokens tokens(first.token, first.token + first.size);
  CHECK(!tokens.empty());
  drafted.observe(Tokens{3, 1}, {});
  plain.observe(Tokens{3, 1}, {});
  CHECK_EQUAL(drafted.index().size(), 13);
  const ScoredTrie a = drafted.index().draft(8, 16), b = plain.index().draft(8, 16);
  CHECK(a.token == b.token && a.parent == b.parent && a.logprob == b.logprob);
  drafted.begin(Tokens{9}, {});
  CHECK_EQUAL(drafted.index().size(), 1);
}

void wrong_settings_and_tokens_are_refused() {
  using treespec::InvalidArgument;
  NgramOptions ngram;
  ngram.max_ngram = 0;
  CHECK_THROWS(InvalidArgument, NgramIndex{ngram});
  ngram = {};
  ngram.kappa = -1.0;
  CHECK_THROWS(InvalidArgument, NgramIndex{ngram});
  SuffixOptions suffix;
  suffix.max_match = 0;
  CHECK_THROWS(InvalidArgument, SuffixIndex{suffix});
  suffix = {};
  suffix.min_token_prob = std::nan("");
  CHECK_THROWS(InvalidArgument, SuffixIndex{suffix});
  NgramIndex a;
  SuffixIndex b;
  CHECK_THROWS(InvalidArgument, a.append(Tokens{1, 2, -1}));
  CHECK_THROWS(InvalidArgument, b.append(Tokens{1, 2, -1}));
  CHECK_EQUAL(a.size() + b.size(), 0);
  CHECK_THROWS(InvalidArgument, a.draft(-1, 4));
  CHECK_THROWS(InvalidArgument, b.draft(4, -1));
  CHECK_EQUAL(a.draft(4, 4).size() + b.draft(4, 4).size(), 0);
}

}  // namespace

int main() {
  std::mt19937 random(20240607);
  an_ngram_draft_equals_brute_force(random);
  recent_hits_weigh_more_when_asked();
  an_ngram_draft_follows_a_loop_to_any_depth();
  suffix_counts_equal_brute_force(random);
  a_suffix_draft_equals_brute_force(random);
  a_unary_text_stays_cheap_and_exact();
  a_drafter_is_unchanged_by_drafting(treespec::NgramDraft(), treespec::NgramDraft());
  a_drafter_is_unchanged_by_drafting(treespec::SuffixDraft(), treespec::SuffixDraft());
  wrong_settings_and_tokens_are_refused();
  return 0;
}
