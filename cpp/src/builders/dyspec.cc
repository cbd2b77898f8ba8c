// SPDX-License-Identifier: Apache-2.0
// DySpec: the node budget goes to the draws that the verifier will most likely look at. "batched"
// makes the same tree as drawing one by one, in few drafter calls.
// Source: Xiong et al., "DySpec", 2024, arXiv 2410.11744, algorithm 1; the batched form is ours.
#include <algorithm>

#include "builders/options.h"
#include "builders/registry.h"
#include "builders/slots.h"

namespace treespec {
namespace {

class DySpec final : public TreeBuilder {
 public:
  explicit DySpec(const BuilderOptions& options) {
    OptionReader reader("dyspec", options);
    options_.max_depth = reader.integer("max_depth", INT32_MAX, 0);
    options_.lazy = reader.word("evaluation", {"batched", "lazy"}) == 1;
    options_.calibration = read_calibration("dyspec", reader);
    reader.finish();
  }

  Proposal proposal() const override { return Proposal::kWithoutReplacement; }
  bool accepts(SourceKind) const override { return true; }
  std::unique_ptr<TreeGrowth> begin(int32_t node_budget, int32_t max_depth,
                                    const RoundKey& key) const override {
    SlotOptions options = options_;
    options.max_depth = std::min(options.max_depth, max_depth);
    return slot_growth(node_budget, options, key);
  }

 private:
  SlotOptions options_;
};

}  // namespace

std::unique_ptr<TreeBuilder> make_dyspec(const BuilderOptions& options) {
  return std::make_unique<DySpec>(options);
}

}  // namespace treespec
