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
constexpr double kNothing = 1e-15;

/// owned[i][j]: mass of the pair {i, j} of program tokens that i wins.
using Owned = std::array<std::array<double, kProgramSize>, kProgramSize>;

/// Shifts pair masses from tokens with more than their target (`excess` > 0) to those with less,
/// until no path is left: the optimum of the program, found as a maximum flow.
class Flow {
 public:
  Flow(Owned& owned, std::vector<double>& excess) : owned_(owned), excess_(excess) {}

  void run() {
    while (find_path()) push();
  }

 private:
  /// Breadth first, sources and neighbours in rank order; true when a token with a deficit was met.
  bool find_path() {
    const auto size = static_cast<int32_t>(excess_.size());
    from_.fill(-1);
    std::array<bool, kProgramSize> seen{};
    std::vector<int32_t> queue;
    for (int32_t t = 0; t < size; ++t) {
      if (excess_[t] > kNothing) {
        queue.push_back(t);
        seen[t] = true;
      }
    }
    for (size_t head = 0; head < queue.size(); ++head) {
      const int32_t t = queue[head];
      for (int32_t u = 0; u < size; ++u) {
        if (seen[u] || !(owned_[t][u] > kNothing)) continue;
        seen[u] = true;
        from_[u] = t;
        queue.push_back(u);
        if (excess_[u] < -kNothing) {
          end_ = u;
          return true;
        }
      }
    }
    return false;
  }

  void push() {
    int32_t source = end_;
    double amount = -excess_[end_];
    for (; from_[source] >= 0; source = from_[source]) {
      amount = std::min(amount, owned_[from_[source]][source]);
    }
    amount = std::min(amount, excess_[source]);
    for (int32_t u = end_; from_[u] >= 0; u = from_[u]) {
      owned_[from_[u]][u] -= amount;
      owned_[u][from_[u]] += amount;
    }
    excess_[source] -= amount;
    excess_[end_] += amount;
  }

  Owned& owned_;
  std::vector<double>& excess_;
  std::array<int32_t, kProgramSize> from_{};
  int32_t end_ = -1;
};

/// One merge of the tournament: a winner of law A against a fresh draw of law q.
class Merge {
 public:
  /// All rows over the support of q.
  Merge(const std::vector<double>& p, const std::vector<double>& q, const std::vector<double>& a)
      : rank_(q.size()), order_(q.size()), law_(q.size(), 0.0) {
    std::iota(order_.begin(), order_.end(), 0);
    std::sort(order_.begin(), order_.end(), [&](int32_t x, int32_t y) {
      const double left = p[x] - a[x] * q[x], right = p[y] - a[y] * q[y];
      return left != right ? left > right : x < y;
    });
    for (size_t i = 0; i < order_.size(); ++i) rank_[order_[i]] = static_cast<int32_t>(i);
    size_ = std::min<int32_t>(kProgramSize, static_cast<int32_t>(order_.size()));
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
  /// Tokens outside the program win against all later ones.
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
    std::vector<double> excess;
    for (int32_t i = 0; i < size_; ++i) {
      for (int32_t j = i + 1; j < size_; ++j) {
        const int32_t x = order_[i], y = order_[j];
        owned_[i][j] = a[x] * q[y] + a[y] * q[x];
      }
    }
    for (int32_t i = 0; i < size_; ++i) excess.push_back(won(i) - p[order_[i]]);
    Flow(owned_, excess).run();
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
      const bool keep =
          decided ? stays == 1.0 : coins.select(node, static_cast<int32_t>(k)) < stays;
      if (!keep) winner = list.place[k];
      law = merge.law();
    }
    list.use_law(law, rows);
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
    std::vector<double> wins(list.token.size(), 0.0);  // for the draws at hand
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
    list.use_law(law, rows);
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
    std::vector<int32_t> token, place;  // of the support; of each draw in it
    std::vector<double> p, q;

    List(const TokenTree& tree, int32_t node, const RowPair& rows) {
      rows.gather_support(token, p, q);
      for (const int32_t child : tree.draws(node)) {
        if (rows.drawable(tree.token[child])) place.push_back(find(tree.token[child]));
      }
    }
    int32_t find(int32_t wanted) const {
      const auto at = std::lower_bound(token.begin(), token.end(), wanted);
      return at != token.end() && *at == wanted ? static_cast<int32_t>(at - token.begin()) : -1;
    }
    void use_law(const std::vector<double>& law, RowPair& rows) const {
      std::vector<double> dense(static_cast<size_t>(rows.vocab_size()), 0.0);
      for (size_t x = 0; x < token.size(); ++x) dense[token[x]] = law[x];
      rows.replace_draft(std::move(dense));
    }
  };
};

}  // namespace

std::unique_ptr<Verifier> make_khisti() { return std::make_unique<Khisti>(); }

}  // namespace treespec
