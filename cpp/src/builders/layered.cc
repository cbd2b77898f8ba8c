// SPDX-License-Identifier: Apache-2.0
// Layer-wise growth with pruning by theta, the node-budget best score so far. A layer needs no more
// than the budget's best of it, and a node that does not beat theta has no child that does, so the
// result equals the unpruned one (trees.md 0.3, lemmas 1 and 3). Ties fall to the total order:
// score down, then depth, then parent, then token id.
#include "builders/layered.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "builders/growth.h"
#include "row_ops.h"
#include "shared/fixed_point.hd.h"
#include "shared/math.hd.h"

namespace treespec {
namespace {

constexpr float kImpossible = -std::numeric_limits<float>::infinity();
constexpr int64_t kScanBlock = 128;

struct Node {
  float score;
  int32_t depth;
  int32_t parent_rank;  // place of the parent in its sorted layer; orders siblings of one depth
  int32_t parent;       // pool id, -1 for children of the root
  int32_t token;
  int32_t state;
  int32_t index;  // hand-over number, -1 until expanded
};

/// Strictly before in the total order.
bool before(const Node& a, const Node& b) {
  if (a.score != b.score) return a.score > b.score;
  if (a.depth != b.depth) return a.depth < b.depth;
  if (a.parent_rank != b.parent_rank) return a.parent_rank < b.parent_rank;
  return a.token < b.token;
}

double probability(float score) {
  return shared::exp_nonpositive(score < 0.0f ? static_cast<double>(score) : 0.0);
}

class LayeredGrowth final : public FrontierGrowth {
 public:
  LayeredGrowth(int32_t node_budget, const LayeredOptions& options)
      : budget_(node_budget), options_(options) {
    if (budget_ > 0 && options_.max_depth > 0) {
      expanded_.push_back(-1);
      hand_over(-1, 0, 0, 0);
    }
  }

  TokenTree assemble() override;

 protected:
  void grow(ArrayView<const CandidateRow> rows) override {
    ++depth_;
    for (int64_t r = 0; r < rows.size(); ++r) {
      add_children(static_cast<int32_t>(r), sharpened(rows[r]));
    }
    clear_frontier();
    if (depth_ < options_.max_depth && worth_another_layer()) open_layer();
  }

 private:
  /// The row with scores at score_temperature; borrowed from scratch when it differs.
  CandidateRow sharpened(CandidateRow row);
  void add_children(int32_t parent_rank, const CandidateRow& row);
  /// Offers candidates begin..end of a row.
  void add_run(int32_t parent_rank, const CandidateRow& row, int64_t begin, int64_t end);
  float base_score(int32_t parent_rank) const {
    const int32_t parent = expanded_[parent_rank];
    return parent < 0 ? 0.0f : pool_[parent].score;
  }
  void offer(const Node& node);
  bool worth_another_layer();
  void open_layer();

  bool full() const { return static_cast<int32_t>(kept_.size()) == budget_; }
  float theta() const { return full() ? pool_[kept_.front()].score : kImpossible; }
  bool worse_on_top(int32_t a, int32_t b) const { return before(pool_[a], pool_[b]); }
  /// Kept nodes of the last layer that may still have a useful child, in the total order.
  std::vector<int32_t> open_nodes() const;

  int32_t budget_;
  LayeredOptions options_;
  int32_t depth_ = 0;
  double expected_ = 0.0;          // expected acceptance after the last layer
  std::vector<Node> pool_;         // every node ever kept; ids are stable
  std::vector<int32_t> kept_;      // the budget best, a heap with the worst in front
  std::vector<int32_t> expanded_;  // pool id of each frontier node; -1 is the root
  std::vector<float> scratch_;
  std::vector<double> weights_;
};

CandidateRow LayeredGrowth::sharpened(CandidateRow row) {
  if (options_.score_temperature == 1.0 || row.size == 0) return row;
  const float top = row::max(row.logprob, row.size);
  if (top == kImpossible) return row;
  scratch_.resize(static_cast<size_t>(row.size));
  weights_.resize(static_cast<size_t>(row.size));
  const double inverse = 1.0 / options_.score_temperature;
  for (int32_t k = 0; k < row.size; ++k) {
    // Relative to the top first: no temperature, however small, can lose the likeliest token.
    const double relative = static_cast<double>(row.logprob[k]) - static_cast<double>(top);
    scratch_[k] = static_cast<float>(relative * inverse);
  }
  row::exp_row(scratch_.data(), row.size, weights_.data());
  const double mass = shared::from_raw_fixed(row::raw_fixed_sum(weights_.data(), row.size));
  // mass may exceed 1, so ln(mass) = -ln(1 / mass)
  const double log_normaliser = -shared::log_unit(1.0 / mass);
  for (int32_t k = 0; k < row.size; ++k) {
    scratch_[k] = static_cast<float>(static_cast<double>(scratch_[k]) - log_normaliser);
  }
  row.logprob = scratch_.data();
  return row;
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

void LayeredGrowth::add_children(int32_t parent_rank, const CandidateRow& row) {
  if (row.ranked) return add_run(parent_rank, row, 0, row.size);
  const float base = base_score(parent_rank);
  for (int64_t begin = 0; begin < row.size; begin += kScanBlock) {
    const int64_t end = std::min<int64_t>(row.size, begin + kScanBlock);
    // Rounding is monotone: if the block's best does not reach theta, none does.
    const float best = child_score(base, row::max(row.logprob + begin, end - begin));
    if (best >= theta() && best != kImpossible) add_run(parent_rank, row, begin, end);
  }
}

void LayeredGrowth::add_run(int32_t parent_rank, const CandidateRow& row, int64_t begin,
                            int64_t end) {
  const int32_t parent = expanded_[parent_rank];
  const float base = base_score(parent_rank);
  for (int64_t k = begin; k < end; ++k) {
    const float score = child_score(base, row.logprob[k]);
    if (score < theta() || score == kImpossible) {
      if (row.ranked) return;  // monotone again: the rest is no better
      continue;
    }
    const int32_t token = row.token != nullptr ? row.token[k] : static_cast<int32_t>(k);
    const int32_t state = row.state != nullptr ? row.state[k] : 0;
    offer({score, depth_, parent_rank, parent, token, state, -1});
  }
}

std::vector<int32_t> LayeredGrowth::open_nodes() const {
  std::vector<int32_t> open;
  for (const int32_t id : kept_) {
    if (pool_[id].depth == depth_ && pool_[id].score > theta()) open.push_back(id);
  }
  std::sort(open.begin(), open.end(),
            [this](int32_t a, int32_t b) { return before(pool_[a], pool_[b]); });
  return open;
}

bool LayeredGrowth::worth_another_layer() {
  if (options_.threshold <= 0.0) return true;  // the frontier decides
  int64_t total = 0;
  for (const int32_t id : kept_) total += shared::to_raw_fixed(probability(pool_[id].score));
  const double expected = shared::from_raw_fixed(static_cast<uint64_t>(total));
  const double gain = expected - expected_;
  expected_ = expected;
  return gain > options_.threshold;
}

void LayeredGrowth::open_layer() {
  const std::vector<int32_t> open = open_nodes();
  int64_t bound = 0;  // no deeper layer can add more than the mass of its parents
  for (const int32_t id : open) bound += shared::to_raw_fixed(probability(pool_[id].score));
  if (shared::from_raw_fixed(static_cast<uint64_t>(bound)) <= options_.threshold) return;
  expanded_ = open;
  for (const int32_t id : open) {
    Node& node = pool_[id];
    const int32_t parent_index = node.parent < 0 ? 0 : pool_[node.parent].index;
    node.index = hand_over(parent_index, node.token, node.depth, node.state);
  }
}

TokenTree LayeredGrowth::assemble() {
  std::sort(kept_.begin(), kept_.end(),
            [this](int32_t a, int32_t b) { return before(pool_[a], pool_[b]); });
  std::vector<int32_t> id_of(pool_.size(), 0);
  TokenTree tree = root_tree(0);
  tree.draw_offset.clear();  // completed below
  for (size_t i = 0; i < kept_.size(); ++i) {
    const Node& node = pool_[kept_[i]];
    id_of[kept_[i]] = static_cast<int32_t>(i) + 1;
    tree.token.push_back(node.token);
    tree.parent.push_back(node.parent < 0 ? 0 : id_of[node.parent]);
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
