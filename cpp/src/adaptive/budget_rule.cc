// SPDX-License-Identifier: Apache-2.0
#include "treespec/budget_rule.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <queue>
#include <utility>

#include "treespec/error.h"

namespace treespec {
namespace {

// Rounds after which what was seen of trees counts half, by such rounds and by plain ones.
constexpr double kRoundsHalfLife = 24.0, kPlainHalfLife = 96.0, kPriceHalfLife = 64.0;
// What a layer nets of the one before, until trees have shown it.
constexpr double kPriorYield = 0.5;
// How many rounds the measured acceptance counts for at the start, and for how many accepted tokens
// the scores are believed.
constexpr double kPriorRounds = 2.0, kPriorTokens = 4.0;
// The price moves slowly: one that fell with every bad round would buy ever larger trees.
constexpr double kPriorPrice = 24.0;
// What is not being played must be better by this share to be taken up.
constexpr double kHysteresis = 0.03;
// What may be lost to looking whether another kind has become better: a share of the time, and a
// few rounds of plain decoding besides, so that a text that starts badly is soon looked at again.
constexpr double kProbeShare = 0.002, kFirstProbes = 2.5;
// What a drafter has to catch up with is not counted as lost up to this share of the time.
constexpr double kCatchUpShare = 0.004;
// Rows may be cheaper than the last ones were, up to the next step of the costs: trees are grown
// with nodes of this part of their price.
constexpr double kFloorPart = 0.35;
// The next layer is worth at least this part of the last one.
constexpr double kLeastYield = 0.05;
// Scores are believed up to this factor.
constexpr double kLeastReliability = 0.01, kMostReliability = 1.25;
// Trees are grown within this factor of the last ones, and a few nodes more.
constexpr double kSpareFactor = 1.3, kSpareNodes = 2.0;

double keep_of(double half_life) { return std::exp2(-1.0 / half_life); }

/// Values of nodes below the root and their depths.
void beginning_of_map(const AcceptanceTable& acceptance, int32_t nodes, int32_t depth,
                      std::vector<double>& value, std::vector<int32_t>& depths) {
  const GrowthMap map = optimal_growth_map(acceptance, nodes, depth);
  value = node_acceptance(map, acceptance);
  depths = map.depths();
  value.erase(value.begin());
  depths.erase(depths.begin());
}

AcceptanceTable first_ranks(const AcceptanceTable& acceptance) {
  AcceptanceTable first;
  for (const std::vector<double>& row : acceptance) first.push_back({row.empty() ? 0.0 : row[0]});
  return first;
}

int32_t depth_of(const TokenTree& tree) {
  return *std::max_element(tree.depth.begin(), tree.depth.end());
}

}  // namespace

std::string_view round_kind_name(RoundKind kind) {
  switch (kind) {
    case RoundKind::kPlain:
      return "plain";
    case RoundKind::kChain:
      return "chain";
    case RoundKind::kTree:
      return "tree";
  }
  return "unknown";
}

BudgetRule::BudgetRule(std::shared_ptr<const CostModel> costs, const BudgetOptions& options)
    : costs_(std::move(costs)),
      options_(options),
      accepted_(kPriorTokens),
      promised_(kPriorTokens) {
  TREESPEC_CHECK(costs_ != nullptr, "BudgetRule: costs must not be null");
  check_costs(*costs_);
  TREESPEC_CHECK(options.max_nodes >= 1, "BudgetRule: max_nodes must be at least 1, got ",
                 options.max_nodes);
  TREESPEC_CHECK(options.max_depth >= 1, "BudgetRule: max_depth must be at least 1, got ",
                 options.max_depth);
  check_acceptance("BudgetRule", "acceptance", options.acceptance);
  const auto fill = [&](RoundKind kind, const AcceptanceTable& table) {
    const auto at = static_cast<size_t>(kind);
    beginning_of_map(table, options.max_nodes, options.max_depth, map_value_[at], map_depth_[at]);
  };
  fill(RoundKind::kTree, options.acceptance);
  // A beginning of a ranked tree is a chain where a chain is best: nothing more is needed.
  if (options.chains && !options.ranked_trees)
    fill(RoundKind::kChain, first_ranks(options.acceptance));
}

// --- before the round ----------------------------------------------------------------------------

RoundPlan BudgetRule::plan(int32_t context, int32_t batch, int32_t useful_depth) {
  const bool first = target_seconds_.empty();
  batch_ = std::max(batch, 1);
  target_seconds_ = costs_->target_seconds(context, batch_, batch_ * (options_.max_nodes + 1));
  if (first) {
    backlog_ = context;
    start();
  }
  grown_ = {};
  probing_ = false;
  plan_ = {};
  if (useful_depth < 1) return plan_;
  const RoundKind kind = choose_kind(useful_depth);
  if (kind == RoundKind::kPlain) return plan_;
  const Size expected = best_expected(kind, useful_depth);
  grown_ = expected;  // until a tree shows more
  plan_.kind = kind;
  plan_.node_budget = expected.nodes;
  plan_.max_depth = std::min(expected.depth, useful_depth);
  if (options_.ranked_trees) {
    // The tree is cut when its scores are known, and grows as long as rows and calls may pay.
    plan_.node_budget = options_.max_nodes;
    if (costs_->drafts_by_level) {
      const double spare = kSpareFactor * std::max<double>(recent_nodes_, expected.nodes);
      plan_.node_budget = std::min(options_.max_nodes, static_cast<int32_t>(spare + kSpareNodes));
    }
    plan_.max_depth = std::min(options_.max_depth, useful_depth);
    const double trust = reliability();
    plan_.floor =
        std::min(kFloorPart * row_price(static_cast<int32_t>(recent_nodes_)) / trust, 0.5);
    if (costs_->drafts_by_level) {
      const double call = costs_->draft_seconds(2, batch_ * recent_rows_, 1.0) -
                          costs_->draft_seconds(1, batch_ * recent_rows_, 1.0);
      plan_.threshold = price() * call / batch_ / std::max(next_layer_.ratio(), kLeastYield);
    }
  }
  return plan_;
}

/// What the measured acceptance promises, as if it had been seen for a few rounds.
void BudgetRule::start() {
  next_layer_ = {kPriorRounds * kPriorYield, kPriorRounds};
  emitted_ = {kPriorPrice, kPriorPrice};
  allowance_ = kFirstProbes;
  for (const RoundKind kind : {RoundKind::kTree, RoundKind::kChain}) {
    if (!plays(kind)) continue;
    Size size;
    // The price is the rate that its own choice reaches: a few steps find it (Dinkelbach).
    for (int step = 0; step < 6; ++step) {
      size = best_expected(kind, options_.max_depth);
      const double reached = size.tokens * plain_seconds() / size.seconds;
      emitted_.tokens = std::max(emitted_.tokens, reached * emitted_.cost);
    }
    rate(kind) = {kPriorRounds * size.tokens, kPriorRounds * size.seconds / plain_seconds()};
    if (advantage(kind) > std::max(1.0, advantage(kind_))) kind_ = kind;
    if (kind_ == kind) recent_nodes_ = size.nodes;
  }
}

RoundKind BudgetRule::choose_kind(int32_t useful_depth) {
  RoundKind best = RoundKind::kTree;
  if (plays(RoundKind::kChain) && advantage(RoundKind::kChain) > advantage(best)) {
    best = RoundKind::kChain;
  }
  if (kind_ == RoundKind::kPlain) {
    if (advantage(best) > 1.0 + kHysteresis) kind_ = best;
  } else if (advantage(best) < 1.0) {
    kind_ = RoundKind::kPlain;
  } else if (advantage(best) > advantage(kind_) * (1.0 + kHysteresis)) {
    kind_ = best;
  }
  // What is played shows what it is worth; of the others nothing is seen but by trying.
  RoundKind unseen = best;
  if (kind_ != RoundKind::kPlain) {
    unseen = kind_ == RoundKind::kTree ? RoundKind::kChain : RoundKind::kTree;
  }
  probing_ =
      unseen != kind_ && plays(unseen) && may_probe(unseen, best_expected(unseen, useful_depth));
  return probing_ ? unseen : kind_;
}

/// Whether as much may be lost as trying a kind would cost, if it is still what it was.
bool BudgetRule::may_probe(RoundKind kind, const Size& size) const {
  const double cost = size.seconds / plain_seconds();
  const double tokens = std::max(1.0, advantage(kind) * cost);
  return advantage(kind_) * (cost + catch_up(size)) - tokens <= allowance_;
}

/// What the drafter has to catch up with beyond the tokens of one round, in plain rounds.
double BudgetRule::catch_up(const Size& size) const {
  const double more =
      costs_->draft_seconds(1, 1.0, backlog_) - costs_->draft_seconds(1, 1.0, size.tokens);
  return std::max(more, 0.0) / batch_ / plain_seconds();
}

// --- what a size is worth ------------------------------------------------------------------------

double BudgetRule::price() const { return std::max(emitted_.ratio(), 1.0) / plain_seconds(); }

double BudgetRule::reliability() const {
  return std::clamp(accepted_ / promised_, kLeastReliability, kMostReliability);
}

double BudgetRule::advantage(RoundKind kind) const {
  if (kind == RoundKind::kPlain) return 1.0;
  return rate(kind).cost > 0.0 ? rate(kind).ratio() : 0.0;
}

bool BudgetRule::plays(RoundKind kind) const {
  return !map_value_[static_cast<size_t>(kind)].empty();
}

double BudgetRule::target_share(int32_t nodes) const {
  TREESPEC_CHECK(!target_seconds_.empty(), "BudgetRule: plan must be called before anything else");
  const auto rows = std::min(static_cast<size_t>(batch_ * (nodes + 1)), target_seconds_.size());
  return target_seconds_[rows - 1] / batch_;
}

double BudgetRule::plain_seconds() const { return target_share(0) + costs_->plain_round_seconds; }

double BudgetRule::drafted_seconds(const Size& size) const {
  const double rows = static_cast<double>(size.nodes) / std::max(size.depth, 1);
  return costs_->draft_seconds(size.depth, batch_ * rows, batch_ * size.tokens) / batch_ +
         target_share(size.nodes) + costs_->drafted_round_seconds;
}

BudgetRule::Size BudgetRule::best_expected(RoundKind kind, int32_t useful_depth) const {
  const std::vector<double>& value = map_value_[static_cast<size_t>(kind)];
  const std::vector<int32_t>& depth = map_depth_[static_cast<size_t>(kind)];
  const double trust = reliability();
  Size best, now;
  double best_worth = -HUGE_VAL;
  for (size_t i = 0; i < value.size(); ++i) {
    if (depth[i] > useful_depth) continue;
    ++now.nodes;
    now.depth = std::max(now.depth, depth[i]);
    now.tokens += std::min(1.0, trust * value[i]);
    now.promised += value[i];
    now.seconds = drafted_seconds(now);
    const double worth = now.tokens - price() * now.seconds;
    if (worth > best_worth) best = now, best_worth = worth;
  }
  return best;
}

/// [N]: how likely each node is to be accepted by its score, 1 for the root. Of the children of a
/// node one at most can be, whatever their scores add up to: a calibration knows nothing of
/// siblings.
std::vector<double> BudgetRule::node_values(const TokenTree& tree) const {
  const auto size = static_cast<size_t>(tree.num_nodes());
  std::vector<double> value(size, 1.0), children(size, 0.0);
  for (size_t i = 1; i < size; ++i) {
    const auto parent = static_cast<size_t>(tree.parent[i]);
    const float step = tree.path_logprob[i] - tree.path_logprob[parent];
    value[i] = std::min(1.0, std::exp(static_cast<double>(step)));
    children[parent] += value[i];
  }
  for (size_t i = 1; i < size; ++i) {
    const auto parent = static_cast<size_t>(tree.parent[i]);
    value[i] *= value[parent] / std::max(1.0, children[parent]);
  }
  return value;
}

/// What the next rows cost each, in tokens: what a node must be worth to be kept.
double BudgetRule::row_price(int32_t nodes) const {
  const int32_t further = std::max(4, nodes / 2);
  return price() * (target_share(nodes + further) - target_share(nodes)) / further;
}

/// What one more layer has brought, after paying for its rows, for every token expected of the
/// layer before. Scores are the drafter's own here, as the builder's threshold takes them.
void BudgetRule::see_layers(const TokenTree& tree, const std::vector<double>& value, int32_t kept) {
  const double floor = row_price(kept);
  std::vector<double> all(static_cast<size_t>(depth_of(tree)) + 2, 0.0), net(all);
  for (int32_t node = 1; node < tree.num_nodes(); ++node) {
    const auto depth = static_cast<size_t>(tree.depth[static_cast<size_t>(node)]);
    all[depth] += std::exp(static_cast<double>(tree.path_logprob[static_cast<size_t>(node)]));
    net[depth] += std::max(0.0, reliability() * value[static_cast<size_t>(node)] - floor);
  }
  next_layer_.fade(keep_of(kRoundsHalfLife));
  for (size_t depth = 1; depth + 2 < all.size(); ++depth) {
    next_layer_.tokens += net[depth + 1];
    next_layer_.cost += all[depth];
  }
}

BudgetRule::Size BudgetRule::promise(const TokenTree& tree, const std::vector<double>& value,
                                     int32_t nodes) const {
  Size size;
  size.nodes = nodes;
  size.depth = std::max(depth_of(tree), 1);  // the calls were made, whatever is cut
  size.promised = std::accumulate(value.begin() + 1, value.begin() + nodes + 1, 0.0);
  size.tokens = 1.0 + reliability() * size.promised;
  size.seconds = drafted_seconds(size);
  return size;
}

// --- after the round -----------------------------------------------------------------------------

void BudgetRule::learn(const TokenTree& tree, ArrayView<const int32_t> accepted_nodes) {
  const double emitted = static_cast<double>(accepted_nodes.size()) + 1.0;
  const bool drafted = plan_.kind != RoundKind::kPlain;
  const double cost = drafted ? grown_.seconds / plain_seconds() : 1.0;
  emitted_.fade(keep_of(kPriceHalfLife));
  emitted_.add(emitted, cost);
  allowance_ += kProbeShare * cost;
  for (Rate& one : rates_) one.fade(keep_of(drafted ? kRoundsHalfLife : kPlainHalfLife));
  if (probing_) allowance_ -= advantage(kind_) * (cost + catch_up(grown_)) - grown_.tokens;
  if (!drafted) {
    const double before = catch_up({});
    ++backlog_;
    allowance_ += std::min(catch_up({}) - before, kCatchUpShare);
    return;
  }
  backlog_ = static_cast<int32_t>(emitted);
  accepted_ = keep_of(kRoundsHalfLife) * accepted_ + emitted - 1.0;
  promised_ = keep_of(kRoundsHalfLife) * promised_ + grown_.promised;
  rate(plan_.kind).add(grown_.tokens, cost);
  const double keep = keep_of(kRoundsHalfLife);
  const double nodes = tree.num_nodes() - 1;
  recent_nodes_ = keep * recent_nodes_ + (1.0 - keep) * nodes;
  // A tree that fills what it was given is to be given more.
  if (nodes >= plan_.node_budget) recent_nodes_ = std::max(recent_nodes_, nodes);
  recent_rows_ = keep * recent_rows_ + (1.0 - keep) * nodes / std::max(depth_of(tree), 1);
}

// --- the batch -----------------------------------------------------------------------------------

std::vector<int32_t> share_budget(ArrayView<BudgetRule* const> rules,
                                  ArrayView<const TokenTree* const> trees) {
  struct Next {
    double value;
    int64_t sequence;
    int32_t node;
    bool operator<(const Next& other) const {
      return value != other.value ? value < other.value : sequence > other.sequence;
    }
  };
  TREESPEC_CHECK(rules.size() == trees.size(), "share_budget: rules must be as many as trees, got ",
                 rules.size(), " and ", trees.size());
  std::vector<int32_t> kept;
  std::priority_queue<Next> open;
  int64_t rows = 0;
  double price = 0.0;
  std::vector<std::vector<double>> values;
  const auto offer = [&](int64_t i, int32_t node) {
    const auto place = static_cast<size_t>(node);
    const std::vector<double>& own = values[static_cast<size_t>(i)];
    if (place < own.size()) open.push({rules[i]->reliability() * own[place], i, node});
  };
  const auto cuts = [&](int64_t i) {
    return rules[i]->options_.ranked_trees && rules[i]->plan_.kind != RoundKind::kPlain &&
           trees[i]->proposal == Proposal::kDeterministic;
  };
  for (int64_t i = 0; i < rules.size(); ++i) {
    price += rules[i]->price() / static_cast<double>(rules.size());
    kept.push_back(cuts(i) ? 0 : trees[i]->num_nodes() - 1);
    rows += kept.back() + 1;
    values.push_back(cuts(i) ? rules[i]->node_values(*trees[i]) : std::vector<double>{1.0});
    offer(i, 1);
  }
  const auto seconds = [&](int64_t num_rows) {
    double sum = 0.0;
    for (const BudgetRule* rule : rules) {
      const auto& table = rule->target_seconds_;
      sum += table[std::min(static_cast<size_t>(num_rows), table.size()) - 1];
    }
    return sum / static_cast<double>(rules.size());
  };
  // The whole staircase is looked at: a step up may pay for what comes after it.
  std::vector<int64_t> order;
  double tokens = 0.0, best_worth = -price * seconds(rows);
  size_t best = 0;
  while (!open.empty()) {
    const Next next = open.top();
    open.pop();
    tokens += next.value;
    order.push_back(next.sequence);
    const double worth = tokens - price * seconds(rows + static_cast<int64_t>(order.size()));
    if (worth > best_worth) best_worth = worth, best = order.size();
    offer(next.sequence, next.node + 1);
  }
  for (size_t i = 0; i < best; ++i) ++kept[static_cast<size_t>(order[i])];
  for (int64_t i = 0; i < rules.size(); ++i) {
    if (!cuts(i)) continue;
    const std::vector<double>& value = values[static_cast<size_t>(i)];
    rules[i]->grown_ = rules[i]->promise(*trees[i], value, kept[static_cast<size_t>(i)]);
    rules[i]->see_layers(*trees[i], value, kept[static_cast<size_t>(i)]);
  }
  return kept;
}

}  // namespace treespec
