// SPDX-License-Identifier: Apache-2.0
// Levels of fixed width, filled with the most likely tokens or with draws from the draft law.
// Source: Miao et al., "SpecInfer", 2023, arXiv 2305.09781 (expansion vectors); drawing without
// replacement by exponential races as in Sequoia (Chen et al., 2024, arXiv 2402.12374).
#include "builders/fixed_width.h"

#include <algorithm>
#include <cmath>

#include "builders/growth.h"
#include "row_ops.h"
#include "shared/fixed_point.hd.h"
#include "treespec/sampling.h"

namespace treespec {
namespace {

int32_t token_of(const CandidateRow& row, int32_t entry) {
  return row.token != nullptr ? row.token[entry] : entry;
}

/// Entries with positive probability, by token id.
std::vector<int32_t> ascending_support(const CandidateRow& row) {
  std::vector<int32_t> entries;
  for (int32_t k = 0; k < row.size; ++k) {
    if (!std::isinf(row.logprob[k])) entries.push_back(k);
  }
  if (row.token != nullptr) {
    std::sort(entries.begin(), entries.end(),
              [&](int32_t a, int32_t b) { return row.token[a] < row.token[b]; });
  }
  return entries;
}

class FixedWidthGrowth final : public FrontierGrowth {
 public:
  FixedWidthGrowth(std::vector<int32_t> widths, Proposal proposal, const RoundKey& key)
      : widths_(std::move(widths)), key_(key), tree_(root_tree(0)) {
    tree_.proposal = proposal;
    slot_ = {0};
    draws_.resize(1);
    if (!widths_.empty()) {
      layer_ = {0};
      index_ = {hand_over(-1, 0, 0, 0)};
    }
  }

  TokenTree assemble() override;

 protected:
  void grow(ArrayView<const CandidateRow> rows) override;

 private:
  /// Entries of the row that become children of `node`, in draw order with multiplicity.
  std::vector<int32_t> choose(int32_t node, const CandidateRow& row, int32_t width);
  std::vector<int32_t> most_likely(const CandidateRow& row, int32_t width) const;
  std::vector<int32_t> drawn(int32_t node, const CandidateRow& row, int32_t width);
  /// Appends the row's law (tokens ascending, probabilities in weights_) to the tree.
  void record_law(int32_t node, const CandidateRow& row, const std::vector<int32_t>& token);
  int32_t add_child(int32_t node, const CandidateRow& row, int32_t entry);

  std::vector<int32_t> widths_;
  RoundKey key_;
  TokenTree tree_;
  std::vector<std::vector<int32_t>> draws_;  // per node
  std::vector<uint32_t> slot_;               // path slot per node: names its noise
  std::vector<int32_t> state_{0};            // source mark per node
  std::vector<int32_t> layer_;               // tree ids of the frontier
  std::vector<int32_t> index_;               // hand-over number per node, -1: not handed over
  std::vector<double> weights_;
};

void FixedWidthGrowth::grow(ArrayView<const CandidateRow> rows) {
  const std::vector<int32_t> layer = std::move(layer_);
  layer_.clear();
  clear_frontier();
  const auto depth = static_cast<size_t>(tree_.depth[layer.front()]);
  for (size_t i = 0; i < layer.size(); ++i) {
    const int32_t node = layer[i];
    for (const int32_t entry : choose(node, rows[static_cast<int64_t>(i)], widths_[depth])) {
      const int32_t token = token_of(rows[static_cast<int64_t>(i)], entry);
      const auto twin = std::find_if(draws_[node].begin(), draws_[node].end(),
                                     [&](int32_t c) { return tree_.token[c] == token; });
      // add_child grows draws_: take the id first.
      const int32_t child = twin != draws_[node].end()
                                ? *twin
                                : add_child(node, rows[static_cast<int64_t>(i)], entry);
      draws_[node].push_back(child);
    }
  }
  if (depth + 1 == widths_.size()) return;
  for (const int32_t node : layer_) {
    index_[node] =
        hand_over(index_[tree_.parent[node]], tree_.token[node], tree_.depth[node], state_[node]);
  }
}

std::vector<int32_t> FixedWidthGrowth::choose(int32_t node, const CandidateRow& row,
                                              int32_t width) {
  return tree_.proposal == Proposal::kDeterministic ? most_likely(row, width)
                                                    : drawn(node, row, width);
}

std::vector<int32_t> FixedWidthGrowth::most_likely(const CandidateRow& row, int32_t width) const {
  const auto better = [&](int32_t a, int32_t b) {
    if (row.logprob[a] != row.logprob[b]) return row.logprob[a] > row.logprob[b];
    return token_of(row, a) < token_of(row, b);
  };
  std::vector<int32_t> best;  // ascending in `better`
  for (int32_t k = 0; k < row.size; ++k) {
    if (std::isinf(row.logprob[k])) continue;
    if (static_cast<int32_t>(best.size()) == width) {
      if (!better(k, best.back())) continue;
      best.pop_back();
    }
    best.insert(std::upper_bound(best.begin(), best.end(), k, better), k);
  }
  return best;
}

std::vector<int32_t> FixedWidthGrowth::drawn(int32_t node, const CandidateRow& row, int32_t width) {
  const std::vector<int32_t> entry = ascending_support(row);
  if (entry.empty()) return {};  // nothing to draw from
  std::vector<float> logprob(entry.size());
  for (size_t k = 0; k < entry.size(); ++k) logprob[k] = row.logprob[entry[k]];
  const auto size = static_cast<int64_t>(entry.size());
  weights_.resize(entry.size());
  row::exp_row(logprob.data(), size, weights_.data());
  const double mass = shared::from_raw_fixed(row::raw_fixed_sum(weights_.data(), size));
  std::vector<int32_t> token(entry.size());
  for (size_t k = 0; k < entry.size(); ++k) {
    // Draw from the float32 numbers that are recorded: the verifier must divide by the very same.
    weights_[k] = static_cast<float>(weights_[k] / mass);
    token[k] = token_of(row, entry[k]);
  }
  record_law(node, row, token);
  std::vector<int32_t> chosen;
  if (tree_.proposal == Proposal::kWithoutReplacement) {
    chosen =
        row::race(weights_.data(), token.data(), size, key_, Purpose::kDraft, slot_[node], width);
  } else {
    for (int32_t j = 0; j < width; ++j) {
      const double u = uniform(key_, Purpose::kDraft, slot_[node], static_cast<uint32_t>(j));
      chosen.push_back(inverse_cdf(weights_, u));
    }
  }
  for (int32_t& k : chosen) k = entry[k];
  return chosen;
}

void FixedWidthGrowth::record_law(int32_t node, const CandidateRow& row,
                                  const std::vector<int32_t>& token) {
  DraftRows& rows = tree_.draft_probs;
  if (rows.row_offset.empty()) rows.row_offset.push_back(0);
  rows.row_of_node.resize(static_cast<size_t>(tree_.num_nodes()), -1);
  rows.row_of_node[node] = static_cast<int32_t>(rows.row_offset.size()) - 1;
  rows.vocab_size = std::max(rows.vocab_size, row.token == nullptr ? row.size : token.back() + 1);
  rows.token.insert(rows.token.end(), token.begin(), token.end());
  rows.prob.insert(rows.prob.end(), weights_.begin(), weights_.end());
  rows.row_offset.push_back(static_cast<int64_t>(rows.prob.size()));
}

int32_t FixedWidthGrowth::add_child(int32_t node, const CandidateRow& row, int32_t entry) {
  const int32_t child = tree_.num_nodes();
  const int32_t token = token_of(row, entry);
  tree_.token.push_back(token);
  tree_.parent.push_back(node);
  tree_.depth.push_back(tree_.depth[node] + 1);
  tree_.path_logprob.push_back(child_score(tree_.path_logprob[node], row.logprob[entry]));
  draws_.emplace_back();
  slot_.push_back(child_slot(slot_[node], token));
  state_.push_back(row.state != nullptr ? row.state[entry] : 0);
  index_.push_back(-1);
  layer_.push_back(child);
  return child;
}

TokenTree FixedWidthGrowth::assemble() {
  tree_.draw_offset = {0};
  for (const auto& of_node : draws_) {
    tree_.draw.insert(tree_.draw.end(), of_node.begin(), of_node.end());
    tree_.draw_offset.push_back(static_cast<int32_t>(tree_.draw.size()));
  }
  if (!tree_.draft_probs.empty()) {
    tree_.draft_probs.row_of_node.resize(static_cast<size_t>(tree_.num_nodes()), -1);
  }
  return std::move(tree_);
}

}  // namespace

std::unique_ptr<TreeGrowth> fixed_width_growth(std::vector<int32_t> widths, Proposal proposal,
                                               const RoundKey& key) {
  return std::make_unique<FixedWidthGrowth>(std::move(widths), proposal, key);
}

int64_t most_nodes(const std::vector<int32_t>& widths, size_t levels) {
  constexpr int64_t kCeiling = INT64_MAX / 2;
  int64_t total = 0;
  int64_t level = 1;
  for (size_t d = 0; d < levels; ++d) {
    level = widths[d] > kCeiling / level ? kCeiling : level * widths[d];
    total = std::min(kCeiling, total + level);
  }
  return total;
}

}  // namespace treespec
