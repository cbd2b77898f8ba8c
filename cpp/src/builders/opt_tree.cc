// SPDX-License-Identifier: Apache-2.0
// OPT-Tree: the tree of largest expected acceptance, grown layer by layer until a layer adds too
// little. Source: Wang et al., "OPT-Tree", 2024, arXiv 2406.17276, section 3; pruning and stop
// bounds are ours.
#include <algorithm>

#include "builders/layered.h"
#include "builders/options.h"
#include "builders/registry.h"

namespace treespec {
namespace {

class OptTree final : public TreeBuilder {
 public:
  explicit OptTree(const BuilderOptions& options) {
    OptionReader reader("opt_tree", options);
    options_.max_depth = reader.integer("max_depth", 10, 0);
    options_.threshold = reader.number("threshold", 0.0, 0.0);
    options_.floor = reader.number("floor", 0.0, 0.0);
    options_.scores = read_score_options("opt_tree", reader);
    reader.finish();
    TREESPEC_CHECK(options_.floor < 1.0, "opt_tree: floor must be in [0, 1), got ", options_.floor);
  }

  Proposal proposal() const override { return Proposal::kDeterministic; }
  bool accepts(SourceKind) const override { return true; }
  std::unique_ptr<TreeGrowth> begin(int32_t node_budget, int32_t max_depth,
                                    const RoundKey&) const override {
    LayeredOptions options = options_;
    options.max_depth = std::min(options.max_depth, max_depth);
    return layered_growth(node_budget, options);
  }

 private:
  LayeredOptions options_;
};

}  // namespace

std::unique_ptr<TreeBuilder> make_opt_tree(const BuilderOptions& options) {
  return std::make_unique<OptTree>(options);
}

}  // namespace treespec
