// SPDX-License-Identifier: Apache-2.0
// Medusa's static choices: the rank paths of largest product of the heads' accuracies.
// Source: Cai et al., "Medusa", 2024, arXiv 2401.10774, section 2.3.3 (optimized tree
// construction).
#include "builders/optimal_shape.h"
#include "builders/registry.h"

namespace treespec {
namespace {

class MedusaChoices final : public TreeBuilder {
 public:
  explicit MedusaChoices(OptionReader reader)
      : shape_("medusa_choices", reader, "accuracy", demo_accuracy()) {
    reader.finish();
  }

  Proposal proposal() const override { return Proposal::kDeterministic; }
  bool makes_chains() const override { return shape_.is_chain(); }
  bool accepts(SourceKind) const override { return true; }
  std::unique_ptr<TreeGrowth> begin(int32_t node_budget, int32_t max_depth,
                                    const RoundKey& key) const override {
    return fixed_shape_growth(shape_.shape(node_budget, max_depth), proposal(), key);
  }

 private:
  OptimalShape shape_;
};

}  // namespace

std::unique_ptr<TreeBuilder> make_medusa_choices(const BuilderOptions& options) {
  return std::make_unique<MedusaChoices>(OptionReader("medusa_choices", options));
}

}  // namespace treespec
