// SPDX-License-Identifier: Apache-2.0
// Small in-memory models in float64: batch shape cannot move a logit, so texts compare exactly.
#pragma once

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "treespec/decoder.h"
#include "treespec/rng.h"

namespace treespec::test {

using Tokens = std::vector<int32_t>;

/// Logit of `token` after (before_last, last): a fixed random table, peaked enough to be drafted.
inline double table_logit(uint64_t table, int32_t before_last, int32_t last, int32_t token) {
  const PhiloxWords words = philox(static_cast<uint32_t>(before_last), static_cast<uint32_t>(last),
                                   static_cast<uint32_t>(token), 0, table);
  return 4.0 * (static_cast<double>(words.word[0]) / 4294967296.0 - 0.5) *
         (1.0 + static_cast<double>(words.word[1]) / 4294967296.0);
}

/// Order-2 table as the target. Its "KV cache" is the list of tokens it holds, tree rows included
/// until `commit`; logits follow from that list and the ancestor bits alone.
class TableTarget final : public TargetModel {
 public:
  TableTarget(int32_t vocab_size, uint64_t table) : vocab_size_(vocab_size), table_(table) {}

  int32_t vocab_size() const override { return vocab_size_; }
  int32_t max_context() const override { return context; }

  RowsView prefill(ArrayView<const int32_t> token_ids) override {
    ++num_prefills;
    kv.assign(token_ids.begin(), token_ids.end());
    tree_.clear();
    open_ = false;
    logits_.clear();
    states_.clear();
    for (size_t i = 0; i < kv.size(); ++i) push_state(static_cast<int64_t>(i), kv[i]);
    push_row(kv);
    return logits(1);
  }

  RowsView forward(const TreeStep& step) override {
    CHECK(!open_);
    if (throw_at_forward == ++num_forwards) throw std::runtime_error("target failed");
    CHECK_EQUAL(step.prefix_length, static_cast<int32_t>(kv.size()));
    open_ = true;
    tree_.assign(step.tokens().begin(), step.tokens().end());
    logits_.clear();
    states_.clear();
    const int32_t words = (step.num_nodes() + 31) / 32;
    for (int32_t i = 0; i < step.num_nodes(); ++i) {
      Tokens seen = kv;  // the prefix, then what the mask lets node i see
      for (int32_t j = 0; j < step.num_nodes(); ++j) {
        if (step.ancestor_bits[i * words + j / 32] >> (j % 32) & 1u) seen.push_back(tree_[j]);
      }
      CHECK_EQUAL(step.positions[i] + 1, static_cast<int32_t>(seen.size()));
      CHECK_EQUAL(seen.back(), tree_[i]);
      push_state(step.positions[i], tree_[i]);
      push_row(seen);
    }
    return logits(step.num_nodes());
  }

  void commit(ArrayView<const int32_t> nodes) override {
    CHECK(open_);
    CHECK(nodes.size() >= 1 && nodes[0] == 0);
    for (int64_t i = 1; i < nodes.size(); ++i) CHECK(nodes[i] > nodes[i - 1]);
    for (const int32_t node : nodes) kv.push_back(tree_[node]);
    open_ = false;
    states_.assign(states_.size(), -1.0);  // what the decoder still needs, it has copied
  }

  RowsView states() override {
    if (!with_states) return {};
    return {states_.data(), DType::kFloat64, static_cast<int64_t>(states_.size() / 2), 2, 2};
  }

  double logit(const Tokens& seen, int32_t token) const {
    const size_t size = seen.size();
    return table_logit(table_, size > 1 ? seen[size - 2] : 0, seen[size - 1], token);
  }

  Tokens kv;  ///< tokens whose KV is held, the open tree excluded
  int num_prefills = 0, num_forwards = 0;
  int throw_at_forward = -1;
  int32_t context = INT32_MAX;
  bool with_states = false;

 private:
  void push_row(const Tokens& seen) {
    for (int32_t t = 0; t < vocab_size_; ++t) logits_.push_back(logit(seen, t));
  }
  /// The state of a row names its position and token.
  void push_state(int64_t position, int32_t token) {
    states_.push_back(static_cast<double>(position));
    states_.push_back(token);
  }
  RowsView logits(int64_t rows) const {
    return {logits_.data(), DType::kFloat64, rows, vocab_size_, vocab_size_};
  }

  int32_t vocab_size_;
  uint64_t table_;
  Tokens tree_;
  bool open_ = false;
  std::vector<double> logits_, states_;
};

/// The target's table with noise, as an Expander. Checks the states it observes.
class NoisyDraft final : public DraftModel, private Expander {
 public:
  NoisyDraft(const TableTarget& target, double noise) : target_(target), noise_(noise) {}

  int32_t vocab_size() const override { return target_.vocab_size(); }
  void begin(ArrayView<const int32_t> prompt, const RowsView& states) override {
    text_.assign(prompt.begin(), prompt.end());
    if (states.data != nullptr) check_states(states, 0, prompt);
  }
  CandidateSource& draft(const DraftRequest& request) override {
    if (throw_at_draft == ++num_drafts) throw std::runtime_error("draft failed");
    CHECK(!text_.empty());
    CHECK_EQUAL(text_.back(), request.root_token);
    CHECK_EQUAL(request.key.position + 1, static_cast<uint32_t>(text_.size()));
    CHECK(request.max_depth >= 1 && request.node_budget >= 1);
    paths_.clear();
    return *this;
  }
  void observe(ArrayView<const int32_t> token_ids, const RowsView& states) override {
    if (states.data != nullptr) {
      Tokens before(text_.end() - 1, text_.end());
      before.insert(before.end(), token_ids.begin(), token_ids.end() - 1);
      check_states(states, static_cast<int64_t>(text_.size()) - 1, before);
      ++num_state_rounds;
    }
    text_.insert(text_.end(), token_ids.begin(), token_ids.end());
  }

  int num_drafts = 0, num_state_rounds = 0;
  int throw_at_draft = -1;

 private:
  static void check_states(const RowsView& states, int64_t position,
                           ArrayView<const int32_t> token_ids) {
    CHECK_EQUAL(states.num_rows, token_ids.size());
    const auto* value = static_cast<const double*>(states.data);
    for (int64_t i = 0; i < states.num_rows; ++i) {
      CHECK_EQUAL(value[i * states.row_stride], static_cast<double>(position + i));
      CHECK_EQUAL(value[i * states.row_stride + 1], static_cast<double>(token_ids[i]));
    }
  }

  ArrayView<const CandidateRow> rows(ArrayView<const FrontierNode> nodes) override {
    const auto vocab = static_cast<size_t>(vocab_size());
    logprobs_.resize(static_cast<size_t>(nodes.size()) * vocab);
    rows_.clear();
    for (int64_t i = 0; i < nodes.size(); ++i) {
      float* row = logprobs_.data() + static_cast<size_t>(i) * vocab;
      fill_row(path_of(nodes[i]), row);
      rows_.push_back({nullptr, row, nullptr, vocab_size()});
    }
    return rows_;
  }
  const Tokens& path_of(const FrontierNode& node) {
    if (paths_.size() <= static_cast<size_t>(node.index)) paths_.resize(node.index + 1);
    Tokens& path = paths_[node.index];
    path = node.parent < 0 ? text_ : paths_[node.parent];
    if (node.parent >= 0) path.push_back(node.token);
    return path;
  }
  void fill_row(const Tokens& seen, float* row) const {
    double mass = 0.0;
    for (int32_t t = 0; t < vocab_size(); ++t) mass += std::exp(noisy(seen, t));
    for (int32_t t = 0; t < vocab_size(); ++t) {
      row[t] = static_cast<float>(noisy(seen, t) - std::log(mass));
    }
  }
  double noisy(const Tokens& seen, int32_t token) const {
    const int32_t before_last = seen.size() > 1 ? seen[seen.size() - 2] : 0;
    return target_.logit(seen, token) +
           noise_ * table_logit(12345, before_last, seen.back(), token);
  }

  const TableTarget& target_;
  double noise_;
  Tokens text_;
  std::vector<Tokens> paths_;  // by FrontierNode::index
  std::vector<float> logprobs_;
  std::vector<CandidateRow> rows_;
};

/// The prompt and what was generated, the root excluded: what a target must hold in the end.
inline Tokens expected_kv(const Tokens& prompt, const Tokens& output) {
  Tokens text = prompt;
  text.insert(text.end(), output.begin(), output.end());
  text.pop_back();
  return text;
}

}  // namespace treespec::test
