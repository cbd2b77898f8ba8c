// SPDX-License-Identifier: Apache-2.0
#include "builders/best_first.h"

#include <algorithm>
#include <deque>
#include <limits>
#include <numeric>
#include <vector>

#include "builders/growth.h"
#include "builders/row_law.h"

namespace treespec {
namespace {

constexpr float kImpossible = -std::numeric_limits<float>::infinity();

/// A candidate in the heap, packed so that a smaller pair of words is earlier in the total order:
/// score down, depth up, parent up, rank up.
struct Candidate {
  uint64_t score_depth;
  uint64_t parent_rank;

  Candidate(float score, int32_t depth, int32_t parent, int32_t rank)
      : score_depth(static_cast<uint64_t>(shared::magnitude_of(score)) << 32 |
                    static_cast<uint32_t>(depth)),
        parent_rank(static_cast<uint64_t>(static_cast<uint32_t>(parent)) << 32 |
                    static_cast<uint32_t>(rank)) {}

  int32_t depth() const { return static_cast<int32_t>(score_depth & 0xFFFFFFFFu); }
  int32_t parent() const { return static_cast<int32_t>(parent_rank >> 32); }
  int32_t rank() const { return static_cast<int32_t>(parent_rank & 0xFFFFFFFFu); }

  friend bool operator<(const Candidate& a, const Candidate& b) {
    if (a.score_depth != b.score_depth) return a.score_depth < b.score_depth;
    return a.parent_rank < b.parent_rank;
  }
};

/// A binary heap, best on top, whose top can be replaced in one sift.
class CandidateHeap {
 public:
  void reserve(size_t size) { items_.reserve(size); }
  bool empty() const { return items_.empty(); }
  const Candidate& top() const { return items_.front(); }

  void push(const Candidate& candidate) {
    items_.push_back(candidate);
    size_t at = items_.size() - 1;
    for (; at > 0 && candidate < items_[(at - 1) / 2]; at = (at - 1) / 2) {
      items_[at] = items_[(at - 1) / 2];
    }
    items_[at] = candidate;
  }

  void pop() {
    const Candidate last = items_.back();
    items_.pop_back();
    if (!items_.empty()) replace_top(last);
  }

  void replace_top(const Candidate& candidate) {
    const size_t size = items_.size();
    size_t at = 0;
    for (size_t child = 1; child < size; child = 2 * at + 1) {
      child += child + 1 < size && items_[child + 1] < items_[child];
      if (!(items_[child] < candidate)) break;
      items_[at] = items_[child];
      at = child;
    }
    items_[at] = candidate;
  }

 private:
  std::vector<Candidate> items_;
};

class BestFirstGrowth final : public FrontierGrowth {
 public:
  BestFirstGrowth(int32_t node_budget, int32_t max_depth, const ScoreOptions& scores)
      : budget_(node_budget), max_depth_(max_depth), plain_(scores.plain()), scorer_(scores) {
    tree_ = root_tree(0);
    tree_.draw_offset.clear();  // completed at the end
    rows_.emplace_back();
    index_.push_back(0);
    if (budget_ > 0 && max_depth_ > 0) hand_over(-1, 0, 0, 0);
  }

  TokenTree assemble() override {
    complete_tree(tree_);
    return std::move(tree_);
  }

 protected:
  void take(int64_t, const CandidateRow& row) override { rows_.back() = ranked(row); }

  void grow(ArrayView<const CandidateRow>) override {
    clear_frontier();
    const int32_t node = tree_.num_nodes() - 1;  // the row is that of the last node popped
    if (ready(node, 0)) heap_.push(candidate(node, 0));
    while (!heap_.empty() && tree_.num_nodes() <= budget_) {
      if (take_best()) return;
    }
  }

 private:
  /// The row in rank order, with its scores; a copy when the source's own will not do.
  CandidateRow ranked(const CandidateRow& row);
  /// A copy with its candidates in the given order.
  CandidateRow copied(const CandidateRow& row, const std::vector<int32_t>& order);
  bool possible(int32_t parent, int32_t rank) const {
    return rank < rows_[parent].size && rows_[parent].logprob[rank] != kImpossible;
  }
  Candidate candidate(int32_t parent, int32_t rank) const {
    return {child_score(tree_.path_logprob[parent], rows_[parent].logprob[rank]),
            tree_.depth[parent] + 1, parent, rank};
  }
  /// Whether there is a candidate of this rank; brings it into the total order first.
  bool ready(int32_t parent, int32_t rank) {
    if (!possible(parent, rank)) return false;
    if (possible(parent, rank + 1) && same_score(parent, rank, rank + 1)) settle_tie(parent, rank);
    return true;
  }
  bool same_score(int32_t parent, int32_t a, int32_t b) const {
    const float base = tree_.path_logprob[parent];
    const float* logprob = rows_[parent].logprob;
    return child_score(base, logprob[a]) == child_score(base, logprob[b]);
  }
  /// Siblings whose log-probabilities differ but whose scores round to one number come by token.
  void settle_tie(int32_t parent, int32_t first);
  /// Pops the best candidate into the tree and offers its next sibling. Returns whether the new
  /// node's row is wanted before the next pop.
  bool take_best();

  struct OwnRow {
    std::vector<int32_t> token, state;
    std::vector<float> logprob;
  };

  int32_t budget_, max_depth_;
  bool plain_;
  Scorer scorer_;
  TokenTree tree_;
  CandidateHeap heap_;
  std::vector<CandidateRow> rows_;  // per node; empty until supplied
  std::vector<int32_t> index_;      // hand-over number per node
  std::deque<OwnRow> own_;
};

bool BestFirstGrowth::take_best() {
  const Candidate best = heap_.top();
  const int32_t parent = best.parent(), rank = best.rank();
  const CandidateRow row = rows_[parent];
  const int32_t token = row.token_of(rank);
  const int32_t state = row.state != nullptr ? row.state[rank] : 0;
  tree_.token.push_back(token);
  tree_.parent.push_back(parent);
  tree_.depth.push_back(best.depth());
  tree_.path_logprob.push_back(child_score(tree_.path_logprob[parent], row.logprob[rank]));
  if (ready(parent, rank + 1)) {
    heap_.replace_top(candidate(parent, rank + 1));
  } else {
    heap_.pop();
  }
  rows_.emplace_back();
  index_.push_back(-1);
  if (best.depth() >= max_depth_ || tree_.num_nodes() > budget_) return false;
  index_.back() = hand_over(index_[parent], token, best.depth(), state);
  return true;
}

void BestFirstGrowth::settle_tie(int32_t parent, int32_t first) {
  if (first > 0 && same_score(parent, first - 1, first)) return;  // done with the first of them
  const CandidateRow row = rows_[parent];
  int32_t end = first + 1;
  while (end < row.size && same_score(parent, first, end)) ++end;
  std::vector<int32_t> order(static_cast<size_t>(row.size));
  std::iota(order.begin(), order.end(), 0);
  const auto by_token = [&](int32_t a, int32_t b) { return row.token_of(a) < row.token_of(b); };
  if (std::is_sorted(order.begin() + first, order.begin() + end, by_token)) return;
  std::sort(order.begin() + first, order.begin() + end, by_token);
  rows_[parent] = copied(row, order);
}

CandidateRow BestFirstGrowth::ranked(const CandidateRow& given) {
  if (plain_ && given.ranked) return given;
  const CandidateRow row = scorer_.scored(given);
  return copied(row, most_likely(row, row.size));
}

CandidateRow BestFirstGrowth::copied(const CandidateRow& row, const std::vector<int32_t>& order) {
  OwnRow& own = own_.emplace_back();
  for (const int32_t k : order) {
    own.token.push_back(row.token_of(k));
    own.state.push_back(row.state != nullptr ? row.state[k] : 0);
    own.logprob.push_back(row.logprob[k]);
  }
  return {own.token.data(), own.logprob.data(), own.state.data(),
          static_cast<int32_t>(order.size()), true};
}

class BestFirstBuilder final : public TreeBuilder {
 public:
  BestFirstBuilder(std::string_view name, bool (*reads)(SourceKind), const BuilderOptions& options)
      : reads_(reads) {
    OptionReader reader(name, options);
    max_depth_ = reader.integer("max_depth", INT32_MAX, 0);
    scores_ = read_score_options(name, reader);
    reader.finish();
  }

  Proposal proposal() const override { return Proposal::kDeterministic; }
  bool accepts(SourceKind kind) const override { return reads_(kind); }
  std::unique_ptr<TreeGrowth> begin(int32_t node_budget, int32_t max_depth,
                                    const RoundKey&) const override {
    return best_first_growth(node_budget, std::min(max_depth_, max_depth), scores_);
  }

 private:
  bool (*reads_)(SourceKind);
  int32_t max_depth_;
  ScoreOptions scores_;
};

}  // namespace

std::unique_ptr<TreeBuilder> best_first_builder(std::string_view name, bool (*reads)(SourceKind),
                                                const BuilderOptions& options) {
  return std::make_unique<BestFirstBuilder>(name, reads, options);
}

std::unique_ptr<TreeGrowth> best_first_growth(int32_t node_budget, int32_t max_depth,
                                              const ScoreOptions& scores) {
  return std::make_unique<BestFirstGrowth>(node_budget, max_depth, scores);
}

}  // namespace treespec
