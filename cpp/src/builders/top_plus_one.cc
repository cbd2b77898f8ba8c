// SPDX-License-Identifier: Apache-2.0
// An expansion vector whose nodes get their k - 1 likeliest tokens and one that is drawn from the
// rest: at a temperature above 0 the drawn one reaches what the likeliest leave out.
// Source: Sun et al., "SpecHub", 2024, arXiv 2411.05289; Hu et al., "Towards Optimal Multi-draft
// Speculative Decoding", 2025, arXiv 2502.18779.
#include "builders/expansion.h"
#include "builders/registry.h"

namespace treespec {
namespace {

class TopPlusOne final : public TreeBuilder {
 public:
  explicit TopPlusOne(OptionReader reader) : expansion_("top_plus_one", reader, {3, 2, 1, 1}) {
    reader.finish();
  }

  Proposal proposal() const override { return Proposal::kTopPlusOne; }
  bool makes_chains() const override { return expansion_.is_chain(); }
  bool accepts(SourceKind) const override { return true; }
  std::unique_ptr<TreeGrowth> begin(int32_t node_budget, int32_t max_depth,
                                    const RoundKey& key) const override {
    return fixed_shape_growth(expansion_.shape(node_budget, max_depth), proposal(), key);
  }

 private:
  Expansion expansion_;
};

}  // namespace

std::unique_ptr<TreeBuilder> make_top_plus_one(const BuilderOptions& options) {
  return std::make_unique<TopPlusOne>(OptionReader("top_plus_one", options));
}

}  // namespace treespec
