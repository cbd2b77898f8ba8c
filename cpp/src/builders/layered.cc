// SPDX-License-Identifier: Apache-2.0
// Layer-wise growth with pruning by theta, the node-budget best score so far, or the floor. A layer
// needs no more than the budget's best of it, and a node that does not beat theta has no child that
// does, so the result equals the unpruned one (trees.md 0.3, lemmas 1 and 3). Ties fall to the
// total order: score down, then depth, then parent, then token id.
#include "builders/layered.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "builders/growth.h"
#include "builders/row_law.h"
#include "row_ops.h"
#include "shared/fixed_point.hd.h"
#include "shared/math.hd.h"

namespace treespec {
namespace {

constexpr float kImpossible = -std::numeric_limits<float>::infinity();
constexpr int32_t kRoot = -1;  // as a parent in the pool

struct Node {
  float score;
  int32_t depth;
  int32_t parent;  // pool id
  int32_t token;
  int32_t state;
  int32_t index;  // hand-over number, -1 until expanded
};

class LayeredGrowth final : public FrontierGrowth {
 public:
  LayeredGrowth(int32_t node_budget, const LayeredOptions& options)
      : budget_(node_budget),
        options_(options),
        scorer_(options.scores),
        floor_(options.floor > 0.0 ? static_cast<float>(shared::log_unit(options.floor))
                                   : kImpossible) {
    if (budget_ > 0 && options_.max_depth > 0 && options_.max_calls > 0) {
      expanded_.push_back(kRoot);
      hand_over(-1, 0, 0, 0);
    }
  }

  TokenTree assemble() override;

 protected:
  void take(int64_t i, const CandidateRow& row) override {
    const int32_t parent = expanded_[static_cast<size_t>(i)];
    add_children(parent, scorer_.best_scored(row, wanted(), theta() - score_of(parent)));
  }

  void grow(ArrayView<const CandidateRow>) override {
    take_layer();
    clear_frontier();
    if (num_calls_ < options_.max_calls && worth_another_call()) expand(open_nodes());
  }

 private:
  void add_children(int32_t parent, const CandidateRow& row);
  /// Offers candidates begin..end of a row.
  void add_run(int32_t parent, const CandidateRow& row, int64_t begin, int64_t end);
  void add_child(int32_t parent, const CandidateRow& row, int64_t entry);
  /// Below the first layer, drops what falls under width_ratio.
  void take_layer();
  void offer(const Node& node);
  bool worth_another_call();
  void expand(const std::vector<int32_t>& open);

  bool before(const Node& a, const Node& b) const;
  bool worse_on_top(int32_t a, int32_t b) const { return before(pool_[a], pool_[b]); }
  void sort(std::vector<int32_t>& ids) const {
    std::sort(ids.begin(), ids.end(), [this](int32_t a, int32_t b) { return worse_on_top(a, b); });
  }
  float score_of(int32_t id) const { return id == kRoot ? 0.0f : pool_[id].score; }
  int32_t depth_of(int32_t id) const { return id == kRoot ? 0 : pool_[id].depth; }
  /// Children of a node that may be kept, at most.
  int32_t wanted() const {
    return static_cast<int32_t>(std::min<int64_t>(options_.width, budget_));
  }
  bool full() const { return static_cast<int32_t>(kept_.size()) == budget_; }
  float theta() const { return full() ? pool_[kept_.front()].score : floor_; }
  /// Sum of the nodes' probabilities.
  double mass(const std::vector<int32_t>& ids) const;
  bool variable_width() const { return options_.width_ratio > 0.0 && num_calls_ > 1; }
  /// Kept nodes that the next call may expand, in the total order.
  std::vector<int32_t> open_nodes() const;
  bool is_open(const Node& node) const;

  int32_t budget_;
  LayeredOptions options_;
  Scorer scorer_;
  float floor_;                    // no kept node has a lower score
  int32_t num_calls_ = 1;          // of the drafter, the one under way included
  double expected_ = 0.0;          // expected acceptance after the last layer
  std::vector<Node> pool_;         // every node ever kept; ids are stable
  std::vector<int32_t> kept_;      // the budget best, a heap with the worst in front
  std::vector<int32_t> expanded_;  // pool id of each frontier node
  std::vector<Node> layer_;        // children that wait for their layer's best
};

/// Strictly before in the total order. Parents of nodes of one depth are of one depth, so that the
/// comparison goes up the two paths and ends at a common ancestor.
bool LayeredGrowth::before(const Node& a, const Node& b) const {
  if (a.score != b.score) return a.score > b.score;
  if (a.depth != b.depth) return a.depth < b.depth;
  if (a.parent != b.parent) return before(pool_[a.parent], pool_[b.parent]);
  return a.token < b.token;
}

void LayeredGrowth::offer(const Node& node) {
  const auto order = [this](int32_t a, int32_t b) { return worse_on_top(a, b); };
  if (full()) {
    if (!before(node, pool_[kept_.front()])) return;
    std::pop_heap(kept_.begin(), kept_.end(), order);
    kept_.pop_back();
  }
  kept_.push_back(static_cast<int32_t>(pool_.size()));
  pool_.push_back(node);
  std::push_heap(kept_.begin(), kept_.end(), order);
}

void LayeredGrowth::add_children(int32_t parent, const CandidateRow& row) {
  if (options_.width < row.size) {
    for (const int32_t k : most_likely(row, options_.width)) add_run(parent, row, k, k + 1);
    return;
  }
  if (row.ranked) return add_run(parent, row, 0, row.size);
  const float base = score_of(parent);
  // Rounding is monotone: if the best of some candidates does not reach theta, none does.
  row::scan(
      row.logprob, row.size,
      [&](float best) { return best != kImpossible && child_score(base, best) >= theta(); },
      [&](int64_t k) { add_run(parent, row, k, k + 1); });
}

void LayeredGrowth::add_run(int32_t parent, const CandidateRow& row, int64_t begin, int64_t end) {
  const float base = score_of(parent);
  for (int64_t k = begin; k < end; ++k) {
    const float score = child_score(base, row.logprob[k]);
    if (score < theta() || score == kImpossible) {
      if (row.ranked) return;  // monotone again: the rest is no better
      continue;
    }
    const auto entry = static_cast<int32_t>(k);
    const Node child{score,
                     depth_of(parent) + 1,
                     parent,
                     row.token_of(entry),
                     row.state != nullptr ? row.state[k] : 0,
                     -1};
    if (variable_width()) {
      layer_.push_back(child);
    } else {
      offer(child);
    }
  }
}

void LayeredGrowth::take_layer() {
  if (layer_.empty()) return;
  float best = kImpossible;
  for (const Node& node : layer_) best = std::max(best, node.score);
  const float least = best + static_cast<float>(shared::log_unit(options_.width_ratio));
  for (const Node& node : layer_) {
    if (node.score >= least) offer(node);
  }
  layer_.clear();
}

bool LayeredGrowth::is_open(const Node& node) const {
  if (node.depth >= options_.max_depth) return false;
  if (options_.growth == LayerGrowth::kConstant) return node.index < 0;
  return node.depth == num_calls_ && node.score > theta();
}

std::vector<int32_t> LayeredGrowth::open_nodes() const {
  std::vector<int32_t> open;
  for (const int32_t id : kept_) {
    if (is_open(pool_[id])) open.push_back(id);
  }
  sort(open);
  if (!variable_width() && static_cast<int64_t>(open.size()) > options_.width) {
    open.resize(static_cast<size_t>(options_.width));
  }
  return open;
}

bool LayeredGrowth::worth_another_call() {
  if (options_.width_ratio > 0.0) return !full();
  if (options_.threshold <= 0.0) return true;  // the frontier decides
  const double expected = mass(kept_);
  const double gain = expected - expected_;
  expected_ = expected;
  return gain > options_.threshold;
}

void LayeredGrowth::expand(const std::vector<int32_t>& open) {
  // No deeper layer can add more than the mass of its parents.
  if (options_.threshold > 0.0 && mass(open) <= options_.threshold) return;
  expanded_ = open;
  ++num_calls_;
  for (const int32_t id : open) {
    Node& node = pool_[id];
    const int32_t parent_index = node.parent == kRoot ? 0 : pool_[node.parent].index;
    node.index = hand_over(parent_index, node.token, node.depth, node.state);
  }
}

double LayeredGrowth::mass(const std::vector<int32_t>& ids) const {
  int64_t total = 0;
  for (const int32_t id : ids) {
    const auto score = static_cast<double>(pool_[id].score);
    total += shared::to_raw_fixed(shared::exp_nonpositive(score < 0.0 ? score : 0.0));
  }
  return shared::from_raw_fixed(static_cast<uint64_t>(total));
}

TokenTree LayeredGrowth::assemble() {
  sort(kept_);
  std::vector<int32_t> id_of(pool_.size(), 0);
  TokenTree tree = root_tree(0);
  tree.draw_offset.clear();  // completed below
  for (size_t i = 0; i < kept_.size(); ++i) {
    const Node& node = pool_[kept_[i]];
    id_of[kept_[i]] = static_cast<int32_t>(i) + 1;
    tree.token.push_back(node.token);
    tree.parent.push_back(node.parent == kRoot ? 0 : id_of[node.parent]);
    tree.path_logprob.push_back(node.score);
  }
  complete_tree(tree);
  return tree;
}

}  // namespace

std::unique_ptr<TreeGrowth> layered_growth(int32_t node_budget, const LayeredOptions& options) {
  return std::make_unique<LayeredGrowth>(node_budget, options);
}

}  // namespace treespec
