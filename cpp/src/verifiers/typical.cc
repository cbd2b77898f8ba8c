// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "shared/block_sum.hd.h"
#include "verifiers/registry.h"
#include "verifiers/row_pair.h"
#include "verifiers/typical.hd.h"

namespace treespec {
namespace {

/// The target's own row at one node.
class Rows {
 public:
  explicit Rows(TargetRows& target_rows) : target_rows_(target_rows) {}

  bool load(int32_t node) {
    target_rows_.load(node, {}, row_);
    mass_ = row_.mass();
    return true;
  }
  double probability(int32_t token) const { return row_.weight(token) / mass_; }
  uint64_t entropy() const {
    double buffer[shared::kBlock];
    uint64_t sum = 0;
    for (int64_t b = 0; b < row_.num_blocks(); ++b) {
      const TargetRow::Units units = row_.units(b, buffer);
      for (const double unit : units.unit) sum += entropy_term(units.scale * unit / mass_);
    }
    return sum;
  }

 private:
  TargetRows& target_rows_;
  TargetRow row_;
  double mass_ = 0.0;
};

class Scores {
 public:
  explicit Scores(int32_t num_nodes)
      : score_(static_cast<size_t>(num_nodes), TypicalRule::kNotReached) {
    score_[0] = 0.0;
  }
  int32_t size() const { return static_cast<int32_t>(score_.size()); }
  double operator[](int32_t node) const { return score_[static_cast<size_t>(node)]; }
  void set(int32_t node, double score) { score_[static_cast<size_t>(node)] = score; }

 private:
  std::vector<double> score_;
};

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
  static int32_t longest_path(const TokenTree& tree, TargetRows& target_rows) {
    Rows rows(target_rows);
    Scores scores(tree.num_nodes());
    return TypicalRule::longest_path(tree, rows, scores);
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
