// SPDX-License-Identifier: Apache-2.0
// EAGLE-2: a beam of the `width` best nodes is expanded layer by layer, and the budget's best of
// all their children are kept. Scores are float32 and ties fall to the shallower node, so that no
// child ever outlives its parent. Sources: Li et al., "EAGLE-2", 2024, arXiv 2406.16858, section 4;
// width_ratio after TALON, 2026, arXiv 2601.07353; growth "constant" after Yggdrasil's equal-growth
// tree, 2025, arXiv 2512.23858.
#include <algorithm>

#include "builders/layered.h"
#include "builders/options.h"
#include "builders/registry.h"

namespace treespec {
namespace {

class Eagle2 final : public TreeBuilder {
 public:
  explicit Eagle2(const BuilderOptions& options) {
    OptionReader reader("eagle2", options);
    options_.width = reader.integer("width", 10, 1);
    // With constant growth a call need not go deeper: the depth then counts the calls.
    options_.max_depth = options_.max_calls = reader.integer("max_depth", 6, 0);
    options_.width_ratio = reader.number("width_ratio", 0.0, 0.0);
    options_.growth = static_cast<LayerGrowth>(reader.word("growth", {"layer", "constant"}));
    options_.scores = read_score_options("eagle2", reader);
    reader.finish();
    TREESPEC_CHECK(options_.width_ratio <= 1.0, "eagle2: width_ratio must be in [0, 1], got ",
                   options_.width_ratio);
    TREESPEC_CHECK(options_.width_ratio == 0.0 || options_.growth == LayerGrowth::kLayer,
                   "eagle2: width_ratio must be 0 with growth \"constant\", got ",
                   options_.width_ratio);
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

std::unique_ptr<TreeBuilder> make_eagle2(const BuilderOptions& options) {
  return std::make_unique<Eagle2>(options);
}

}  // namespace treespec
