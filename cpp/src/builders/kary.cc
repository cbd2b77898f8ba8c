// SPDX-License-Identifier: Apache-2.0
// Trees of a fixed expansion vector <k1, k2, ...>: every node at depth i - 1 gets ki children.
// Source: Miao et al., "SpecInfer", 2023, arXiv 2305.09781, section 3; its single-drafter vector is
// the default.
#include "builders/expansion.h"
#include "builders/registry.h"

namespace treespec {
namespace {

class Kary final : public TreeBuilder {
 public:
  explicit Kary(OptionReader reader)
      : expansion_("kary", reader, {1, 1, 3, 1, 1, 1, 1, 1}),
        proposal_(reader.proposal(
            "proposal", Proposal::kDeterministic,
            {Proposal::kDeterministic, Proposal::kIid, Proposal::kWithoutReplacement})) {
    reader.finish();
  }

  Proposal proposal() const override { return proposal_; }
  bool makes_chains() const override { return expansion_.is_chain(); }
  bool accepts(SourceKind) const override { return true; }
  std::unique_ptr<TreeGrowth> begin(int32_t node_budget, int32_t max_depth,
                                    const RoundKey& key) const override {
    return fixed_shape_growth(expansion_.shape(node_budget, max_depth), proposal_, key);
  }

 private:
  Expansion expansion_;
  Proposal proposal_;
};

}  // namespace

std::unique_ptr<TreeBuilder> make_kary(const BuilderOptions& options) {
  return std::make_unique<Kary>(OptionReader("kary", options));
}

}  // namespace treespec
