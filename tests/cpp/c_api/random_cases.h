// SPDX-License-Identifier: Apache-2.0
// Random sources, as the core takes them and as the C API does.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "c_api/c_calls.h"
#include "treespec/source.h"

namespace treespec::test {

using Random = std::mt19937_64;

inline double unit(Random& random) { return std::uniform_real_distribution<>(0.0, 1.0)(random); }
inline int32_t below(Random& random, int32_t bound) {
  return std::uniform_int_distribution<int32_t>(0, bound - 1)(random);
}

/// A law over `size` tokens; some may be impossible.
inline std::vector<double> random_law(Random& random, int32_t size) {
  std::vector<double> law;
  for (int32_t t = 0; t < size; ++t) {
    law.push_back(unit(random) < 0.2 ? 0.0 : std::pow(unit(random), 3.0) + 1e-3);
  }
  law[below(random, size)] += 0.1;
  const double mass = std::accumulate(law.begin(), law.end(), 0.0);
  for (double& p : law) p /= mass;
  return law;
}

/// One list of `width` distinct tokens, not ranked.
inline void append_list(Random& random, int32_t vocab_size, int32_t width,
                        std::vector<int32_t>& token, std::vector<float>& logprob) {
  std::vector<int32_t> ids(static_cast<size_t>(vocab_size));
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), random);
  const std::vector<double> law = random_law(random, vocab_size);
  for (int32_t k = 0; k < width; ++k) {
    token.push_back(ids[k]);
    logprob.push_back(static_cast<float>(std::log(law[ids[k]])));
  }
}

/// Lists `[depth, num_lists, width]`, or the nodes of a trie.
struct Lists {
  std::vector<int32_t> token, next, parent;
  std::vector<float> logprob;
};

inline Lists random_lists(Random& random, int32_t vocab_size, int32_t depth, int32_t num_lists,
                          int32_t width) {
  Lists lists;
  for (int32_t i = 0; i < depth * num_lists; ++i) {
    append_list(random, vocab_size, width, lists.token, lists.logprob);
    for (int32_t k = 0; k < width; ++k) lists.next.push_back(below(random, num_lists + 1) - 1);
  }
  return lists;
}

inline Lists random_trie(Random& random, int32_t vocab_size, int32_t size) {
  Lists trie;
  std::vector<std::vector<int32_t>> children(static_cast<size_t>(size) + 1);
  while (static_cast<int32_t>(trie.token.size()) < size) {
    const auto parent = below(random, static_cast<int32_t>(trie.token.size()) + 1) - 1;
    const int32_t token = below(random, vocab_size);
    auto& siblings = children[static_cast<size_t>(parent + 1)];
    if (std::find(siblings.begin(), siblings.end(), token) != siblings.end()) continue;
    siblings.push_back(token);
    trie.parent.push_back(parent);
    trie.token.push_back(token);
    trie.logprob.push_back(static_cast<float>(std::log(0.9 * unit(random) + 0.01)));
  }
  return trie;
}

/// A model: log-probabilities after a node, a function of its token, depth and parent's index.
class RandomModel {
 public:
  RandomModel(uint64_t seed, int32_t vocab_size) : seed_(seed), vocab_size_(vocab_size) {}

  int32_t vocab_size() const { return vocab_size_; }
  void append_row(int32_t token, int32_t depth, int32_t parent, std::vector<float>& out) const {
    Random random(seed_ ^ (static_cast<uint64_t>(token) << 40) ^
                  (static_cast<uint64_t>(depth) << 20) ^ static_cast<uint64_t>(parent + 1));
    for (const double p : random_law(random, vocab_size_)) {
      out.push_back(static_cast<float>(std::log(p)));
    }
  }

 private:
  uint64_t seed_;
  int32_t vocab_size_;
};

/// The model as a source of the core; the root carries `root_token`.
class ModelExpander final : public Expander {
 public:
  ModelExpander(const RandomModel& model, int32_t root_token)
      : model_(model), root_token_(root_token) {}
  ArrayView<const CandidateRow> rows(ArrayView<const FrontierNode> nodes) override {
    logprob_.clear();
    for (const FrontierNode& node : nodes) {
      const int32_t token = node.depth == 0 ? root_token_ : node.token;
      model_.append_row(token, node.depth, node.parent, logprob_);
    }
    rows_.clear();
    for (int64_t i = 0; i < nodes.size(); ++i) {
      rows_.push_back({nullptr, logprob_.data() + i * model_.vocab_size(), nullptr,
                       model_.vocab_size(), false});
    }
    return rows_;
  }

 private:
  const RandomModel& model_;
  int32_t root_token_;
  std::vector<float> logprob_;
  std::vector<CandidateRow> rows_;
};

/// The model as callbacks see it.
struct CModel {
  explicit CModel(const RandomModel& given) : model(given) {}

  const RandomModel& model;
  std::vector<float> logprob;
  int32_t answer = TREESPEC_OK;  ///< of the callback

  void score(const treespec_frontier_node* nodes, int64_t num_nodes, treespec_candidates* rows) {
    logprob.clear();
    for (int64_t i = 0; i < num_nodes; ++i) {
      model.append_row(nodes[i].token, nodes[i].depth, nodes[i].parent, logprob);
    }
    rows->logprob = logprob.data();
    rows->num_rows = num_nodes;
    rows->width = rows->row_stride = model.vocab_size();
  }
  static int32_t expand(void* user, const treespec_frontier_node* nodes, int64_t num_nodes,
                        treespec_candidates* rows) {
    auto* self = static_cast<CModel*>(user);
    CHECK_EQUAL(rows->num_rows, num_nodes);
    self->score(nodes, num_nodes, rows);
    return self->answer;
  }
};

}  // namespace treespec::test
