// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "verifiers/khisti.hd.h"
#include "verifiers/registry.h"
#include "verifiers/top_down.h"

namespace treespec {
namespace {

/// What a tournament keeps of the support of a node's law.
class Tournament {
 public:
  explicit Tournament(const RowPair& rows) {
    rows.normalised(target_, draft_);
    law_ = draft_;
  }

  int32_t size() const { return static_cast<int32_t>(law_.size()); }
  Masses at(int32_t place) const {
    const auto i = static_cast<size_t>(place);
    return {target_[i], draft_[i], law_[i]};
  }
  void rank() {
    order_.clear();
    for (int32_t i = 0; i < size(); ++i) order_.push_back(Contender::of(at(i), i));
    std::sort(order_.begin(), order_.end(),
              [](const Contender& a, const Contender& b) { return a.before(b); });
  }
  int32_t ranked(int32_t i) const { return order_[static_cast<size_t>(i)].place; }
  LaterMasses later(int32_t first) const {
    LaterMasses sums;
    for (int32_t i = first; i < size(); ++i) sums.add(at(ranked(i)));
    return sums;
  }
  void settle(const int32_t* place, const double* law, int32_t count) {
    LaterMasses later;
    for (int32_t i = size() - 1; i >= count; --i) {
      const Masses token = at(ranked(i));
      law_[static_cast<size_t>(ranked(i))] = won_from_later(token, later);
      later.add(token);
    }
    for (int32_t i = 0; i < count; ++i) law_[static_cast<size_t>(place[i])] = law[i];
  }
  const std::vector<double>& law() const { return law_; }

  template <class Bound>
  double least(const Bound& bound) const {
    double least = bound(0);
    for (uint32_t set = 1; set < kProgramSets; ++set) least = std::min(least, bound(set));
    return least;
  }

 private:
  std::vector<double> target_, draft_, law_;  // law_: of the winner so far
  std::vector<Contender> order_;
};

class Khisti final : public TopDownVerifier {
  Step step(const TokenTree& tree, int32_t node, RowPair& rows, const Coins& coins) const override {
    return KhistiRule<Tournament>::step(tree, node, rows, coins);
  }

  Branching branching(const TokenTree& tree, int32_t node, RowPair& rows) const override {
    Branching out;
    Tournament tournament(rows);
    std::vector<double> wins;  // of each token of the support, for the draws at hand
    for (const int32_t child : tree.draws(node)) {
      const int32_t token = tree.token[child];
      if (rows.drawable(token)) meet(tournament, rows.find(token), wins);
    }
    if (wins.empty()) return out;
    rows.replace_draft(tournament.law());
    out.none = 0.0;
    std::vector<double> acceptance(wins.size(), 0.0);
    for (size_t x = 0; x < wins.size(); ++x) {
      if (wins[x] > 0.0) acceptance[x] = rows.acceptance(rows.support()[static_cast<int64_t>(x)]);
    }
    const bool certain = rows.reject() == 0.0;
    for (const int32_t child : tree.draws(node)) {
      const int32_t place = rows.find(tree.token[child]);
      const auto x = static_cast<size_t>(place);
      const double a = place < 0 ? 0.0 : certain ? 1.0 : acceptance[x];
      out.accepted.push_back(place < 0 ? 0.0 : wins[x] * a);
      if (place < 0) continue;
      out.none += wins[x] * (1.0 - a);
      wins[x] = 0.0;  // repeats of a draw share its wins
    }
    return out;
  }

  /// Moves to a fresh draw what the others lose to it; the first one finds `wins` empty.
  static void meet(Tournament& tournament, int32_t fresh, std::vector<double>& wins) {
    if (wins.empty()) {
      wins.assign(static_cast<size_t>(tournament.size()), 0.0);
      wins[static_cast<size_t>(fresh)] = 1.0;
      return;
    }
    Merge<Tournament> merge(tournament);
    double taken = 0.0;
    for (int32_t x = 0; x < tournament.size(); ++x) {
      double& left = wins[static_cast<size_t>(x)];
      const double lost = left * (1.0 - merge.stays(x, fresh));
      left -= lost;
      taken += lost;
    }
    wins[static_cast<size_t>(fresh)] += taken;
    merge.settle();
  }
};

}  // namespace

std::unique_ptr<Verifier> make_khisti() { return std::make_unique<Khisti>(); }

}  // namespace treespec
