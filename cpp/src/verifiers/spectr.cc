// SPDX-License-Identifier: Apache-2.0
// K-SEQ: every draw is tested with min(1, p / (rho q)), rho the smallest that keeps the first
// accepted token within the target's law. Lists must be drawn whole: k may not depend on them.
// Source: Sun et al., "SpecTr", 2023, arXiv 2310.15141, algorithm 2; bisection as in
// verification.md 4.2. Draws consumed: accept (node, j) until one passes, sample (node) if none.
#include "row_ops.h"
#include "verifiers/registry.h"
#include "verifiers/top_down.h"

namespace treespec {
namespace {

constexpr int kSteps = 52;  // of the bisection: all bits of a double

/// 1 - (1 - x)^k.
double any_of(double x, int64_t k) {
  double none = 1.0;
  for (int64_t i = 0; i < k; ++i) none *= 1.0 - x;
  return 1.0 - none;
}

struct Rule {
  double rho = 1.0;
  double gamma = 0.0;  // of the residual p - gamma * min(p / rho, q)
};

class SpecTr final : public TopDownVerifier {
  Step step(const TokenTree& tree, int32_t node, RowPair& rows, const Coins& coins) const override {
    const ArrayView<const int32_t> draws = tree.draws(node);
    const Rule rule = solve(rows, draws.size());
    for (int64_t j = 0; j < draws.size(); ++j) {
      const int32_t token = tree.token[draws[j]];
      if (!rows.drawable(token)) continue;
      const double u = coins.accept(node, static_cast<int32_t>(j));
      if (rows.accepts(token, u, 1.0 / rule.rho)) return {draws[j]};
    }
    // Nothing left: p = q up to rounding, and some draw was certain.
    if (rows.subtract(rule.gamma, rule.rho) == 0.0) return {draws[draws.size() - 1]};
    return {-1, rows.sample(coins.sample(node))};
  }

  Branching branching(const TokenTree& tree, int32_t node, RowPair& rows) const override {
    const Rule rule = solve(rows, tree.draws(node).size());
    Branching out;
    for (const int32_t child : tree.draws(node)) {
      const int32_t token = tree.token[child];
      out.take(rows.drawable(token) ? rows.acceptance(token, 1.0 / rule.rho) : 0.0);
    }
    if (rows.subtract(rule.gamma, rule.rho) == 0.0) {
      out.accepted.back() += out.none;
      out.none = 0.0;
    }
    return out;
  }

  /// rho is the smallest in [1, k] with acc(rho) <= rho * beta(rho); terms vanish where q = 0.
  static Rule solve(const RowPair& rows, int64_t k) {
    static thread_local std::vector<int32_t> token;
    static thread_local std::vector<double> p, q;
    rows.gather_support(token, p, q);
    const auto beta = [&](double rho) {
      return shared::from_fixed(
          row::overlap(p.data(), q.data(), static_cast<int64_t>(p.size()), rho));
    };
    double low = 1.0, high = static_cast<double>(k);
    for (int i = 0; i < kSteps && low < high; ++i) {
      const double middle = low + (high - low) * 0.5;
      const double at_middle = beta(middle);
      (any_of(at_middle, k) <= middle * at_middle ? high : low) = middle;
    }
    const double at_rho = beta(high);
    return {high, at_rho > 0.0 ? any_of(at_rho, k) / at_rho : 0.0};
  }
};

}  // namespace

std::unique_ptr<Verifier> make_spectr() { return std::make_unique<SpecTr>(); }

}  // namespace treespec
