// SPDX-License-Identifier: Apache-2.0
// One path: the draft of plain speculative decoding.
// Source: Leviathan et al., 2023, arXiv 2211.17192; Chen et al., 2023, arXiv 2302.01318.
#include <algorithm>

#include "builders/fixed_width.h"
#include "builders/options.h"
#include "builders/registry.h"

namespace treespec {
namespace {

class Chain final : public TreeBuilder {
 public:
  explicit Chain(const BuilderOptions& options) {
    OptionReader reader("chain", options);
    max_depth_ = reader.integer("max_depth", INT32_MAX, 0);
    proposal_ =
        reader.proposal("proposal", Proposal::kDeterministic,
                        {Proposal::kDeterministic, Proposal::kIid, Proposal::kWithoutReplacement});
    reader.finish();
  }

  Proposal proposal() const override { return proposal_; }
  bool makes_chains() const override { return true; }
  bool accepts(SourceKind) const override { return true; }
  std::unique_ptr<TreeGrowth> begin(int32_t node_budget, int32_t max_depth,
                                    const RoundKey& key) const override {
    const int32_t length = std::min({node_budget, max_depth_, max_depth});
    return fixed_width_growth(std::vector<int32_t>(static_cast<size_t>(length), 1), proposal_, key);
  }

 private:
  int32_t max_depth_;
  Proposal proposal_;
};

}  // namespace

std::unique_ptr<TreeBuilder> make_chain(const BuilderOptions& options) {
  return std::make_unique<Chain>(options);
}

}  // namespace treespec
