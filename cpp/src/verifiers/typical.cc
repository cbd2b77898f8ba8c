// SPDX-License-Identifier: Apache-2.0
// Typical acceptance: LOSSY. The longest path of tokens that are likely enough for the target,
// given how undecided it is. Source: Cai et al., "Medusa", 2024, arXiv 2401.10774, section 2.3.1.
// Draws consumed: sample (last node).
#include <algorithm>
#include <limits>

#include "shared/block_sum.hd.h"
#include "shared/math.hd.h"
#include "verifiers/registry.h"
#include "verifiers/row_pair.h"

namespace treespec {
namespace {

constexpr double kEpsilon = 0.09;
constexpr double kDelta = 0.3;
constexpr double kSmallestNormal = std::numeric_limits<double>::min();

/// Probability above which a token is typical of the row.
double least_typical(const TargetRow& row) {
  const double mass = row.mass();
  double buffer[shared::kBlock];
  double entropy = 0.0;
  for (int64_t b = 0; b < row.num_blocks(); ++b) {
    const TargetRow::Units units = row.units(b, buffer);
    for (const double unit : units.unit) {
      const double p = std::min(units.scale * unit / mass, 1.0);
      if (p > 0.0) entropy -= p * shared::log_unit(std::max(p, kSmallestNormal));
    }
  }
  return std::min(kEpsilon, kDelta * shared::exp_nonpositive(-std::max(entropy, 0.0)));
}

class Typical final : public Verifier {
 public:
  Verdict verify(const TokenTree& tree, TargetRows& target_rows, const DraftLaw&,
                 const Coins& coins) const override {
    const int32_t best = longest_path(tree, target_rows);
    Verdict verdict = path_to(tree, best);
    RowPair rows;
    rows.load(tree, best, target_rows, DraftLaw());
    verdict.next_token = rows.sample(coins.sample(best));
    return verdict;
  }

  std::vector<double> node_probability(const TokenTree& tree, TargetRows& target_rows,
                                       const DraftLaw&) const override {
    std::vector<double> reached(tree.token.size(), 0.0);
    reached[0] = 1.0;
    for (int32_t node = longest_path(tree, target_rows); node > 0; node = tree.parent[node]) {
      reached[node] = 1.0;
    }
    return reached;
  }

 private:
  /// End of the longest path of typical tokens; ties: larger sum of log p, then lower id.
  static int32_t longest_path(const TokenTree& tree, TargetRows& target_rows) {
    TargetRow row;
    std::vector<double> score(tree.token.size(), 0.0);  // sum of log p; of accepted nodes
    std::vector<uint8_t> typical(tree.token.size(), 0);
    typical[0] = 1;
    int32_t best = 0;
    for (int32_t node = 0; node < tree.num_nodes(); ++node) {
      if (typical[node] == 0) continue;
      const bool longer = tree.depth[node] > tree.depth[best];
      if (longer || (tree.depth[node] == tree.depth[best] && score[node] > score[best]))
        best = node;
      if (tree.draws(node).empty()) continue;
      target_rows.load(node, {}, row);
      const double least = least_typical(row);
      const double mass = row.mass();
      for (const int32_t child : tree.draws(node)) {
        const double p = row.weight(tree.token[child]) / mass;
        if (!(p > least)) continue;
        typical[child] = 1;
        score[child] = score[node] + shared::log_unit(std::min(p, 1.0));
      }
    }
    return best;
  }

  static Verdict path_to(const TokenTree& tree, int32_t best) {
    Verdict verdict;
    for (int32_t node = best; node > 0; node = tree.parent[node]) {
      verdict.accepted_nodes.push_back(node);
    }
    std::reverse(verdict.accepted_nodes.begin(), verdict.accepted_nodes.end());
    return verdict;
  }
};

}  // namespace

std::unique_ptr<Verifier> make_typical() { return std::make_unique<Typical>(); }

}  // namespace treespec
