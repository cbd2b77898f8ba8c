// SPDX-License-Identifier: Apache-2.0
// Trees of a fixed expansion vector <k1, k2, ...>: every node at depth i - 1 gets ki children.
// Source: Miao et al., "SpecInfer", 2023, arXiv 2305.09781, section 3; its single-drafter vector is
// the default.
#include <algorithm>

#include "builders/fixed_width.h"
#include "builders/options.h"
#include "builders/registry.h"

namespace treespec {
namespace {

class Kary final : public TreeBuilder {
 public:
  explicit Kary(const BuilderOptions& options) {
    OptionReader reader("kary", options);
    expansion_given_ = reader.given("expansion");
    expansion_ = reader.integers("expansion", {1, 1, 3, 1, 1, 1, 1, 1}, 1);
    max_depth_ = reader.integer("max_depth", INT32_MAX, 0);
    proposal_ =
        reader.proposal("proposal", Proposal::kDeterministic,
                        {Proposal::kDeterministic, Proposal::kIid, Proposal::kWithoutReplacement});
    reader.finish();
    TREESPEC_CHECK(!expansion_given_ || max_depth_ >= static_cast<int32_t>(expansion_.size()),
                   "kary: max_depth must be at least the length of expansion (", expansion_.size(),
                   "), got ", max_depth_);
  }

  Proposal proposal() const override { return proposal_; }
  bool makes_chains() const override {
    return std::all_of(expansion_.begin(), expansion_.end(), [](int32_t k) { return k == 1; });
  }
  bool accepts(SourceKind) const override { return true; }
  std::unique_ptr<TreeGrowth> begin(int32_t node_budget, int32_t max_depth,
                                    const RoundKey& key) const override {
    const int64_t size = most_nodes(expansion_, expansion_.size());
    TREESPEC_CHECK(!expansion_given_ || size <= node_budget, "kary: node_budget must hold the ",
                   size, " nodes of expansion, got ", node_budget);
    // Whole levels only: cutting inside a sampled level would look at drawn tokens.
    const auto depth = static_cast<size_t>(std::min(max_depth_, max_depth));
    size_t levels = std::min(expansion_.size(), depth);
    while (levels > 0 && most_nodes(expansion_, levels) > node_budget) --levels;
    return fixed_width_growth({expansion_.begin(), expansion_.begin() + static_cast<long>(levels)},
                              proposal_, key);
  }

 private:
  bool expansion_given_;
  std::vector<int32_t> expansion_;
  int32_t max_depth_;
  Proposal proposal_;
};

}  // namespace

std::unique_ptr<TreeBuilder> make_kary(const BuilderOptions& options) {
  return std::make_unique<Kary>(options);
}

}  // namespace treespec
