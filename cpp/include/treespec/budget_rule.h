// SPDX-License-Identifier: Apache-2.0
// BudgetRule: how large a tree a round should have, or none, from costs and what was accepted.
//
// One price decides everything: the tokens per second that a sequence reaches in the long run. A
// node is worth its place if it adds more expected tokens than its seconds would earn at that price
// (Dinkelbach's form of tokens over time), and so is one more drafter call, a chain in place of a
// tree, plain decoding in place of both.
//
// No clock is read: seconds are those of the CostModel, so that decisions are a function of the
// text and of what was accepted, and a seed gives the same text again.
//
// Sources: one price, envelope: verification by measured times as in Chen et al., "Sequoia" (2024,
// arXiv 2402.12374, section 4.3) and "CaDDTree" (2026, arXiv 2606.01813), with the price of a token
// in place of the ratio of one round; switching off: "Cascade" (2025, arXiv 2506.20675).
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "treespec/array_view.h"
#include "treespec/cost_model.h"
#include "treespec/growth_map.h"
#include "treespec/token_tree.h"

namespace treespec {

/// What is drafted in a round.
enum class RoundKind : uint8_t { kPlain, kChain, kTree };
constexpr int kNumRoundKinds = 3;
/// "plain", "chain", "tree".
std::string_view round_kind_name(RoundKind kind);

/// How a round is to be drafted.
struct RoundPlan {
  RoundKind kind = RoundKind::kPlain;
  int32_t node_budget = 0;  ///< most drafted nodes; 0 when plain
  int32_t max_depth = 0;
  double threshold = 0.0;  ///< expected tokens that pay for one more drafter call (opt_tree)
  double floor = 0.0;      ///< path probability that pays for one more row (opt_tree)
};

struct BudgetOptions {
  int32_t max_nodes = 64;         ///< no larger tree, at least 1
  int32_t max_depth = INT32_MAX;  ///< no deeper one, at least 1
  /// Trees come as a beginning of the best nodes, in order of falling score, and may be cut when
  /// their scores are known: deterministic trees of ranking builders. Else sizes are chosen by
  /// `acceptance` alone, before anything is drawn.
  bool ranked_trees = true;
  /// Chains can be played beside trees that are not ranked.
  bool chains = true;
  /// Acceptance by depth and sibling rank, as measured: what is expected before anything is seen.
  AcceptanceTable acceptance;
};

/// Decides for one sequence. Holds what was seen of it: one object per generation. All but `plan`
/// throws InvalidArgument before the first `plan`, since prices depend on the context.
class BudgetRule {
 public:
  /// Throws InvalidArgument for options or costs out of range. The costs are shared, not copied.
  BudgetRule(std::shared_ptr<const CostModel> costs, const BudgetOptions& options);

  /// Before the drafter is asked. `context`: committed tokens; `batch`: sequences of the forward;
  /// `useful_depth`: deeper nodes could not be emitted; below 1 the round is plain.
  RoundPlan plan(int32_t context, int32_t batch, int32_t useful_depth);
  /// After verification, once for every `plan`: the verified tree and the accepted nodes.
  void learn(const TokenTree& tree, ArrayView<const int32_t> accepted_nodes);

  /// Tokens per second of this sequence in the long run, by the model's seconds.
  double price() const;
  /// Accepted tokens over promised ones: what the scores are worth here.
  double reliability() const;
  /// Expected tokens over seconds of a kind, relative to plain decoding; as last seen.
  double advantage(RoundKind kind) const;

 private:
  friend std::vector<int32_t> share_budget(ArrayView<BudgetRule* const> rules,
                                           ArrayView<const TokenTree* const> trees);
  /// A mean that forgets: tokens, and what they cost in rounds of plain decoding, so that figures
  /// of short contexts hold in long ones.
  struct Rate {
    double tokens = 0.0, cost = 0.0;

    double ratio() const { return tokens / cost; }
    void fade(double keep) { tokens *= keep, cost *= keep; }
    void add(double more_tokens, double more_cost) { tokens += more_tokens, cost += more_cost; }
  };
  /// A size and what it promises.
  struct Size {
    int32_t nodes = 0, depth = 0;
    double tokens = 1.0, seconds = 0.0;
    double promised = 0.0;  // accepted tokens, by the scores as they are
  };

  /// Seconds of this sequence's part of a round with so many drafted nodes.
  double target_share(int32_t nodes) const;
  double drafted_seconds(const Size& size) const;
  double plain_seconds() const;
  /// The size worth most at the price, by the measured acceptance and what it is worth here.
  Size best_expected(RoundKind kind, int32_t useful_depth) const;
  /// What a tree that was grown promises when it is cut to so many nodes.
  Size promise(const TokenTree& tree, const std::vector<double>& value, int32_t nodes) const;
  double row_price(int32_t nodes) const;
  void see_layers(const TokenTree& tree, const std::vector<double>& value, int32_t kept);
  std::vector<double> node_values(const TokenTree& tree) const;
  void start();
  RoundKind choose_kind(int32_t useful_depth);
  bool may_probe(RoundKind kind, const Size& size) const;
  double catch_up(const Size& size) const;
  bool plays(RoundKind kind) const;
  Rate& rate(RoundKind kind) { return rates_[static_cast<int>(kind)]; }
  const Rate& rate(RoundKind kind) const { return rates_[static_cast<int>(kind)]; }

  std::shared_ptr<const CostModel> costs_;
  BudgetOptions options_;
  // By acceptance alone: values without reliability and depths of the best tree and chain.
  std::vector<double> map_value_[kNumRoundKinds];
  std::vector<int32_t> map_depth_[kNumRoundKinds];
  // The round under way.
  std::vector<double> target_seconds_;  // [rows - 1] of the whole forward
  int32_t batch_ = 1;
  RoundPlan plan_;
  bool probing_ = false;
  Size grown_;  // what the verified tree promised
  // What was seen.
  Rate rates_[kNumRoundKinds];
  Rate emitted_;                // by all rounds
  Rate next_layer_;             // of one more layer, for the expected tokens of the last
  double accepted_, promised_;  // tokens of drafted rounds
  double recent_nodes_ = 0.0, recent_rows_ = 1.0;  // kept nodes, nodes per level: means that forget
  int32_t backlog_ = 0;                            // committed tokens that the drafter has not seen
  double allowance_ = 0.0;                         // seconds that may be lost to probing
  RoundKind kind_ = RoundKind::kPlain;
};

/// How many drafted nodes of each tree are verified: those with the largest value over the whole
/// batch, as long as they are worth their seconds. Call between `plan` and `learn` of every rule;
/// trees whose rule has no `ranked_trees`, and roots, are kept whole.
std::vector<int32_t> share_budget(ArrayView<BudgetRule* const> rules,
                                  ArrayView<const TokenTree* const> trees);

}  // namespace treespec
