// SPDX-License-Identifier: Apache-2.0
// DySpec by threshold: every draw whose value reaches the threshold, layer by layer, and the node
// budget's best of them.
// Source: Xiong et al., "DySpec", 2024, arXiv 2410.11744, algorithm 2 (with its inequality turned:
// draw while the value is at least the threshold).
#include <algorithm>

#include "builders/options.h"
#include "builders/registry.h"
#include "builders/slots.h"

namespace treespec {
namespace {

class DySpecThreshold final : public TreeBuilder {
 public:
  explicit DySpecThreshold(const BuilderOptions& options) {
    OptionReader reader("dyspec_threshold", options);
    max_depth_ = reader.integer("max_depth", INT32_MAX, 0);
    threshold_ = reader.number("threshold", 0.0, 0.0, /*open=*/true);
    calibration_ = read_calibration("dyspec_threshold", reader);
    reader.finish();
  }

  Proposal proposal() const override { return Proposal::kWithoutReplacement; }
  bool accepts(SourceKind) const override { return true; }
  std::unique_ptr<TreeGrowth> begin(int32_t node_budget, int32_t max_depth,
                                    const RoundKey& key) const override {
    SlotOptions options;
    options.max_depth = std::min(max_depth_, max_depth);
    options.threshold = threshold_ > 0.0 ? threshold_ : 1.0 / std::max(node_budget, 1);
    options.calibration = calibration_;
    return slot_growth(node_budget, options, key);
  }

 private:
  int32_t max_depth_;
  double threshold_;  // 0: one over the node budget
  Calibration calibration_;
};

}  // namespace

std::unique_ptr<TreeBuilder> make_dyspec_threshold(const BuilderOptions& options) {
  return std::make_unique<DySpecThreshold>(options);
}

}  // namespace treespec
