// SPDX-License-Identifier: Apache-2.0
// The canonical decomposition: a tournament selects one of the draws, and the winner is tested
// against the exact law of winners. Which of two tokens wins is chosen so that this law follows the
// target as far as it can: among the few tokens that need mass most by the optimum of a small
// linear program (a flow), elsewhere by a fixed preference. Source: Khisti et al., "Multi-Draft
// Speculative Sampling: Canonical Decomposition and Theoretical Limits", 2024, arXiv 2410.18234,
// sections 4 and 5 (truncated linear program). Draws consumed: select (node, m) for merge m between
// different tokens of the program, accept (node, 0), sample (node) after a rejection.
#include <algorithm>
#include <array>
#include <numeric>

#include "verifiers/registry.h"
#include "verifiers/top_down.h"

namespace treespec {
namespace {

constexpr int32_t kProgramSize = 5;  // tokens among which the program decides

/// owned[i][j]: mass of the pair {i, j} of program tokens that i wins.
using Owned = std::array<std::array<double, kProgramSize>, kProgramSize>;

/// The program: splits pair masses so that sum of min(wanted, received) is as large as it can be.
/// Of its solutions this is the one that gives the first pair's earlier token as much as the
/// optimum allows, then the second pair's, and so on: unique, and continuous in the numbers.
///
/// By max-flow min-cut a split serves a value iff every set of tokens T does: what T wants, and the
/// mass that can go elsewhere, is at least the value. With 5 tokens these are 32 sums.
class Program {
 public:
  /// `owned[i][j]`, i < j, holds the pair's mass on entry and is split on return.
  Program(const std::vector<double>& wanted, Owned& owned)
      : wanted_(wanted), owned_(owned), given_(wanted.size(), 0.0) {
    const auto size = static_cast<int32_t>(wanted.size());
    for (auto& row : free_) row.fill(true);
    double value = served(0);
    for (uint32_t set = 1; set < 1u << size; ++set) value = std::min(value, served(set));
    for (int32_t i = 0; i < size; ++i) {
      for (int32_t j = i + 1; j < size; ++j) split(i, j, value);
    }
  }

 private:
  static bool holds(uint32_t set, int32_t token) { return (set >> token & 1u) != 0; }

  void split(int32_t i, int32_t j, double value) {
    const double mass = owned_[i][j];
    free_[i][j] = false;
    double most = mass;
    for (uint32_t set = 0; set < 1u << wanted_.size(); ++set) {
      if (holds(set, i) && !holds(set, j)) most = std::min(most, served(set) + mass - value);
    }
    owned_[i][j] = std::max(most, 0.0);
    owned_[j][i] = mass - owned_[i][j];
    given_[i] += owned_[i][j];
    given_[j] += owned_[j][i];
  }

  /// The cut of a set of tokens: what they want, and all mass that need not go to them.
  double served(uint32_t set) const {
    const auto size = static_cast<int32_t>(wanted_.size());
    double sum = 0.0;
    for (int32_t i = 0; i < size; ++i) {
      sum += holds(set, i) ? wanted_[i] : given_[i];
      for (int32_t j = i + 1; j < size; ++j) {
        if (free_[i][j] && !(holds(set, i) && holds(set, j))) sum += owned_[i][j];
      }
    }
    return sum;
  }

  const std::vector<double>& wanted_;
  Owned& owned_;
  std::vector<double> given_;  // by the pairs that are settled
  std::array<std::array<bool, kProgramSize>, kProgramSize> free_{};
};

/// One merge of the tournament: a winner of law A against a fresh draw of law q.
class Merge {
 public:
  /// All rows over the support of q.
  Merge(const std::vector<double>& p, const std::vector<double>& q, const std::vector<double>& a)
      : rank_(q.size()), order_(q.size()), law_(q.size(), 0.0) {
    std::iota(order_.begin(), order_.end(), 0);
    std::sort(order_.begin(), order_.end(), [&](int32_t x, int32_t y) {
      if ((q[x] > 0.0) != (q[y] > 0.0)) return q[x] > 0.0;  // what is never drawn comes last
      const double left = p[x] - a[x] * q[x], right = p[y] - a[y] * q[y];
      return left != right ? left > right : x < y;
    });
    for (size_t i = 0; i < order_.size(); ++i) rank_[order_[i]] = static_cast<int32_t>(i);
    const auto drawable = std::count_if(q.begin(), q.end(), [](double x) { return x > 0.0; });
    size_ = std::min(kProgramSize, static_cast<int32_t>(drawable));
    outside(q, a);
    program(p, q, a);
  }

  /// Probability that the winner so far, `x`, stays against the fresh draw `y`.
  double stays(int32_t x, int32_t y) const {
    const int32_t i = rank_[x], j = rank_[y];
    if (i == j) return 1.0;
    if (i >= size_ || j >= size_) return i < j ? 1.0 : 0.0;
    const double mass = owned_[i][j] + owned_[j][i];
    return mass > 0.0 ? owned_[i][j] / mass : 1.0;
  }
  const std::vector<double>& law() const { return law_; }

 private:
  /// Tokens win against themselves, and against all later ones outside the program.
  void outside(const std::vector<double>& q, const std::vector<double>& a) {
    double q_later = 0.0, a_later = 0.0;
    for (auto i = static_cast<int32_t>(order_.size()) - 1; i >= size_; --i) {
      const int32_t t = order_[i];
      law_[t] = a[t] * q[t] + a[t] * q_later + a_later * q[t];
      q_later += q[t];
      a_later += a[t];
    }
    for (int32_t i = 0; i < size_; ++i) {
      const int32_t t = order_[i];
      law_[t] = a[t] * q[t] + a[t] * q_later + a_later * q[t];
    }
  }

  void program(const std::vector<double>& p, const std::vector<double>& q,
               const std::vector<double>& a) {
    std::vector<double> wanted;
    for (int32_t i = 0; i < size_; ++i) {
      for (int32_t j = i + 1; j < size_; ++j) {
        const int32_t x = order_[i], y = order_[j];
        owned_[i][j] = a[x] * q[y] + a[y] * q[x];
      }
    }
    for (int32_t i = 0; i < size_; ++i) {
      wanted.push_back(std::max(p[order_[i]] - law_[order_[i]], 0.0));
    }
    Program(wanted, owned_);
    for (int32_t i = 0; i < size_; ++i) law_[order_[i]] = won(i);
  }
  double won(int32_t i) const {
    double mass = law_[order_[i]];
    for (int32_t j = 0; j < size_; ++j) mass += owned_[i][j];
    return mass;
  }

  std::vector<int32_t> rank_, order_;
  std::vector<double> law_;  // of the winner
  int32_t size_ = 0;
  Owned owned_{};
};

class Khisti final : public TopDownVerifier {
  Step step(const TokenTree& tree, int32_t node, RowPair& rows, const Coins& coins) const override {
    const List list(tree, node, rows);
    if (list.place.empty()) return {-1, rows.sample(coins.sample(node))};
    std::vector<double> law = list.q;
    int32_t winner = list.place[0];
    for (size_t k = 1; k < list.place.size(); ++k) {
      const Merge merge(list.p, list.q, law);
      const double stays = merge.stays(winner, list.place[k]);
      const bool decided = stays == 0.0 || stays == 1.0;
      const bool keep = decided ? stays == 1.0 : coins.select(node, list.draw[k]) < stays;
      if (!keep) winner = list.place[k];
      law = merge.law();
    }
    rows.replace_draft(std::move(law));
    const int32_t token = list.token[winner];
    if (rows.drawable(token) &&
        (rows.accepts(token, coins.accept(node, 0)) || rows.reject() == 0.0)) {
      return {tree.find_child(node, token)};
    }
    return {-1, rows.sample(coins.sample(node))};
  }

  Branching branching(const TokenTree& tree, int32_t node, RowPair& rows) const override {
    const List list(tree, node, rows);
    Branching out;
    if (list.place.empty()) return out;
    std::vector<double> law = list.q;
    std::vector<double> wins(list.q.size(), 0.0);  // for the draws at hand
    wins[list.place[0]] = 1.0;
    for (size_t k = 1; k < list.place.size(); ++k) {
      const Merge merge(list.p, list.q, law);
      const int32_t fresh = list.place[k];
      double taken = 0.0;
      for (size_t x = 0; x < wins.size(); ++x) {
        const double lost = wins[x] * (1.0 - merge.stays(static_cast<int32_t>(x), fresh));
        wins[x] -= lost;
        taken += lost;
      }
      wins[fresh] += taken;
      law = merge.law();
    }
    rows.replace_draft(std::move(law));
    out.none = 0.0;
    std::vector<double> acceptance(wins.size(), 0.0);
    for (size_t x = 0; x < wins.size(); ++x) {
      if (wins[x] > 0.0) acceptance[x] = rows.acceptance(list.token[x]);
    }
    const bool certain = rows.reject() == 0.0;
    for (const int32_t child : tree.draws(node)) {
      const int32_t x = list.find(tree.token[child]);
      const double a = x < 0 ? 0.0 : certain ? 1.0 : acceptance[x];
      out.accepted.push_back(x < 0 ? 0.0 : wins[x] * a);
      if (x < 0) continue;
      out.none += wins[x] * (1.0 - a);
      wins[x] = 0.0;  // repeats of a draw share its wins
    }
    return out;
  }

  /// The draws of a node, over the support of its law.
  struct List {
    ArrayView<const int32_t> token;    // of the support
    std::vector<int32_t> place, draw;  // of each drawable draw: in the support, in the list
    std::vector<double> p, q;

    List(const TokenTree& tree, int32_t node, const RowPair& rows) {
      token = rows.support();
      rows.normalised(p, q);
      const ArrayView<const int32_t> draws = tree.draws(node);
      for (int64_t j = 0; j < draws.size(); ++j) {
        if (!rows.drawable(tree.token[draws[j]])) continue;
        place.push_back(find(tree.token[draws[j]]));
        draw.push_back(static_cast<int32_t>(j));
      }
    }
    int32_t find(int32_t wanted) const {
      const auto at = std::lower_bound(token.begin(), token.end(), wanted);
      return at != token.end() && *at == wanted ? static_cast<int32_t>(at - token.begin()) : -1;
    }
  };
};

}  // namespace

std::unique_ptr<Verifier> make_khisti() { return std::make_unique<Khisti>(); }

}  // namespace treespec
