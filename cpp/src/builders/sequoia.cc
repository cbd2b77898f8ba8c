// SPDX-License-Identifier: Apache-2.0
// Sequoia: the growth map of largest expected acceptance by sibling rank.
// Source: Chen et al., "Sequoia", 2024, arXiv 2402.12374 (tree construction).
#include "builders/optimal_shape.h"
#include "builders/registry.h"

namespace treespec {
namespace {

class Sequoia final : public TreeBuilder {
 public:
  explicit Sequoia(OptionReader reader)
      : shape_("sequoia", reader, "acceptance", demo_acceptance()),
        proposal_(reader.proposal("proposal", Proposal::kDeterministic,
                                  {Proposal::kDeterministic, Proposal::kWithoutReplacement})) {
    reader.finish();
  }

  Proposal proposal() const override { return proposal_; }
  bool makes_chains() const override { return shape_.is_chain(); }
  bool accepts(SourceKind) const override { return true; }
  std::unique_ptr<TreeGrowth> begin(int32_t node_budget, int32_t max_depth,
                                    const RoundKey& key) const override {
    return fixed_shape_growth(shape_.shape(node_budget, max_depth), proposal_, key);
  }

 private:
  OptimalShape shape_;
  Proposal proposal_;
};

}  // namespace

std::unique_ptr<TreeBuilder> make_sequoia(const BuilderOptions& options) {
  return std::make_unique<Sequoia>(OptionReader("sequoia", options));
}

}  // namespace treespec
