// SPDX-License-Identifier: Apache-2.0
// Best-first tree from one-pass drafters: the likeliest prefixes by per-position marginals (DDTree)
// or by first-order rows (conditional one-shot drafters).
// Source: "DDTree: diffusion draft trees", 2026, arXiv 2604.12989, propositions 1 and 2.
#include <algorithm>

#include "builders/best_first.h"
#include "builders/options.h"
#include "builders/registry.h"

namespace treespec {
namespace {

class DTree final : public TreeBuilder {
 public:
  explicit DTree(const BuilderOptions& options) {
    OptionReader reader("dtree", options);
    max_depth_ = reader.integer("max_depth", INT32_MAX, 0);
    scores_ = read_score_options("dtree", reader);
    reader.finish();
  }

  Proposal proposal() const override { return Proposal::kDeterministic; }
  bool accepts(SourceKind kind) const override { return kind != SourceKind::kExpander; }
  std::unique_ptr<TreeGrowth> begin(int32_t node_budget, int32_t max_depth,
                                    const RoundKey&) const override {
    return best_first_growth(node_budget, std::min(max_depth_, max_depth), scores_);
  }

 private:
  int32_t max_depth_;
  ScoreOptions scores_;
};

}  // namespace

std::unique_ptr<TreeBuilder> make_dtree(const BuilderOptions& options) {
  return std::make_unique<DTree>(options);
}

}  // namespace treespec
