// SPDX-License-Identifier: Apache-2.0
#include "builders/slots.h"

#include <algorithm>
#include <functional>
#include <queue>
#include <vector>

#include "builders/sketch.h"
#include "row_ops.h"
#include "shared/fixed_point.hd.h"

namespace treespec {
namespace {

constexpr int32_t kFirstDraws = 8;

/// The draws of one node, taken in advance: noise depends on the path alone, so that a draw is the
/// same whenever it is looked at. Values are those of slots, known before their draw.
struct Draws {
  bool evaluated = false;
  std::vector<int32_t> token, state;
  std::vector<float> logprob;
  std::vector<double> value;        // of slot j
  std::vector<double> child_value;  // of the child that draw j makes: its own slot 0

  int32_t size() const { return static_cast<int32_t>(token.size()); }
  CandidateRow row() const { return {token.data(), logprob.data(), state.data(), size(), false}; }
};

struct Slot {
  double value;
  int32_t depth;   // of the node to be drawn
  int32_t parent;  // place in pop order
  int32_t draw;

  /// Whether it is popped after the other.
  friend bool operator<(const Slot& a, const Slot& b) {
    if (a.value != b.value) return a.value < b.value;
    if (a.depth != b.depth) return a.depth > b.depth;
    if (a.parent != b.parent) return a.parent > b.parent;
    return a.draw > b.draw;
  }
};

class SlotGrowth final : public SketchGrowth {
 public:
  SlotGrowth(int32_t node_budget, const SlotOptions& options, const RoundKey& key)
      : SketchGrowth(Proposal::kWithoutReplacement, key), budget_(node_budget), options_(options) {
    draws_.emplace_back();
    value_ = {1.0};
    push_first_slot(0, 0);
    if (!heap_.empty()) request_all({0});
  }

 protected:
  void take(int64_t i, const CandidateRow& row) override {
    if (i == 0) least_ = budget_best(Among::kKnownToExist).value;
    evaluate(waiting_[static_cast<size_t>(i)], row);
  }

  void grow(ArrayView<const CandidateRow>) override {
    clear_frontier();
    if (!options_.lazy) draw_ahead();
    if (frontier().empty()) pop_slots();
  }

  std::vector<int32_t> order() const override { return popped_; }

 private:
  enum class Among : uint8_t { kKnownToExist, kAll };

  /// The budget-th best slot. Among equal values the shallower comes first: without the depth, a
  /// drafter that is certain for ever would be followed for ever.
  struct Bar {
    double value;
    int32_t depth;
    bool reached_by(double v, int32_t d) const { return v > value || (v == value && d <= depth); }
  };

  /// Whether the node may have a child at all.
  bool may_grow(int32_t node) const {
    return budget_ > 0 && nodes_[node].depth < options_.max_depth && value_[node] > 0.0 &&
           value_[node] >= options_.threshold;
  }
  void request_all(const std::vector<int32_t>& nodes) {
    waiting_ = nodes;
    for (const int32_t node : waiting_) request(node);
  }
  /// Takes draws from the node's row, at least all of slots of value `least_` or more.
  void evaluate(int32_t node, const CandidateRow& row);
  /// Makes the child of the node's open slot.
  void draw(int32_t node);
  /// Draws every slot that may be among the best; requests the nodes that may hold more of them.
  void draw_ahead();
  /// Reached by every slot when there are fewer. Slots of nodes whose row is not known may turn out
  /// not to exist.
  Bar budget_best(Among among) const;
  /// `place`: the node's place in pop order.
  void push_first_slot(int32_t node, int32_t place);
  /// Pops slots in order until the budget is used or a node has to be evaluated first.
  void pop_slots();

  int32_t budget_;
  SlotOptions options_;
  RowLaw law_;
  std::vector<Draws> draws_;   // per node
  std::vector<double> value_;  // per node: of its slot 0
  std::vector<int32_t> waiting_;
  double least_ = 0.0;  // lower slots cannot be among the best
  std::priority_queue<Slot> heap_;
  std::vector<int32_t> popped_{0};  // nodes in pop order, root first
};

void SlotGrowth::evaluate(int32_t node, const CandidateRow& row) {
  draws_[node].evaluated = true;
  law_.read(row);
  if (law_.empty()) return;
  record_law(node, law_);
  const auto total = row::fixed_sum(law_.probs().data(), law_.size());
  const auto part = [&](uint64_t mass) {
    return value_[node] * (static_cast<double>(mass) / static_cast<double>(total));
  };
  // Behind `budget` slots of one node comes nothing that matters; mostly a few draws suffice.
  for (int64_t count = std::min(kFirstDraws, budget_);;
       count = std::min<int64_t>(8 * count, budget_)) {
    Draws draws;
    draws.evaluated = true;
    uint64_t rest = total;
    double value = value_[node];  // of the slot that is drawn next
    for (const int32_t k :
         law_.race(law_.probs(), key_, nodes_[node].slot, static_cast<int32_t>(count))) {
      if (!(value > 0.0) || value < options_.threshold) break;
      const auto share = static_cast<uint64_t>(shared::to_fixed(law_.probs()[k]));
      const int32_t entry = law_.entry(k);
      draws.token.push_back(law_.token(k));
      draws.state.push_back(row.state != nullptr ? row.state[entry] : 0);
      draws.logprob.push_back(row.logprob[entry]);
      draws.value.push_back(value);
      if (options_.calibration.empty()) {
        draws.child_value.push_back(part(share));
        value = part(rest - share);
      } else {
        const double r = static_cast<double>(share) / static_cast<double>(rest);
        const double accepted = calibrated(options_.calibration, r);
        draws.child_value.push_back(value * accepted);
        value *= 1.0 - accepted;
      }
      rest -= share;
    }
    const bool all = draws.size() < count || count == budget_ || value < least_;
    draws_[node] = std::move(draws);
    if (all) return;
  }
}

void SlotGrowth::draw(int32_t node) {
  const auto j = static_cast<int32_t>(nodes_[node].draws.size());
  const int32_t child = add_child(node, draws_[node].row(), j);
  nodes_[node].draws.push_back(child);
  value_.push_back(draws_[node].child_value[j]);
  draws_.emplace_back();
}

SlotGrowth::Bar SlotGrowth::budget_best(Among among) const {
  std::vector<Bar> slots;
  for (size_t i = 0; i < nodes_.size(); ++i) {
    const int32_t depth = nodes_[i].depth + 1;
    if (!draws_[i].evaluated) {
      if (among == Among::kAll && may_grow(static_cast<int32_t>(i))) {
        slots.push_back({value_[i], depth});
      }
      continue;
    }
    const size_t drawn_and_open = std::min(draws_[i].value.size(), nodes_[i].draws.size() + 1);
    for (size_t j = 0; j < drawn_and_open; ++j) slots.push_back({draws_[i].value[j], depth});
  }
  if (slots.size() < static_cast<size_t>(budget_)) return {0.0, INT32_MAX};
  const auto last = slots.begin() + budget_ - 1;
  std::nth_element(slots.begin(), last, slots.end(), [](const Bar& a, const Bar& b) {
    return a.value != b.value ? a.value > b.value : a.depth < b.depth;
  });
  return *last;
}

void SlotGrowth::draw_ahead() {
  for (bool drew = true; drew;) {
    drew = false;
    const Bar bar = budget_best(Among::kAll);
    std::vector<int32_t> unknown;
    // Children that are born here wait for the next pass: they may have raised the bar.
    const auto num_nodes = static_cast<int32_t>(nodes_.size());
    for (int32_t node = 0; node < num_nodes; ++node) {
      const int32_t depth = nodes_[node].depth + 1;
      if (!draws_[node].evaluated) {
        if (may_grow(node) && bar.reached_by(value_[node], depth)) unknown.push_back(node);
        continue;
      }
      while (nodes_[node].draws.size() < draws_[node].value.size() &&
             bar.reached_by(draws_[node].value[nodes_[node].draws.size()], depth)) {
        draw(node);
        drew = true;
      }
    }
    if (!drew) request_all(unknown);
  }
}

void SlotGrowth::push_first_slot(int32_t node, int32_t place) {
  if (may_grow(node)) heap_.push({value_[node], nodes_[node].depth + 1, place, 0});
}

void SlotGrowth::pop_slots() {
  while (!heap_.empty() && static_cast<int32_t>(popped_.size()) <= budget_) {
    const Slot slot = heap_.top();
    const int32_t node = popped_[slot.parent];
    if (!draws_[node].evaluated) return request_all({node});
    heap_.pop();
    if (slot.draw >= draws_[node].size()) continue;  // an empty row: there was no such slot
    if (slot.draw == static_cast<int32_t>(nodes_[node].draws.size())) draw(node);
    if (slot.draw + 1 < draws_[node].size()) {
      heap_.push({draws_[node].value[slot.draw + 1], slot.depth, slot.parent, slot.draw + 1});
    }
    popped_.push_back(nodes_[node].draws[slot.draw]);
    push_first_slot(popped_.back(), static_cast<int32_t>(popped_.size()) - 1);
  }
}

}  // namespace

std::unique_ptr<TreeGrowth> slot_growth(int32_t node_budget, const SlotOptions& options,
                                        const RoundKey& key) {
  return std::make_unique<SlotGrowth>(node_budget, options, key);
}

}  // namespace treespec
