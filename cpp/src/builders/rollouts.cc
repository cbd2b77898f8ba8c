// SPDX-License-Identifier: Apache-2.0
// K independent paths drawn from the draft law: "K sequences of length L".
// Source: Miao et al., "SpecInfer", 2023, arXiv 2305.09781; delayed trees without a trunk, 2026,
// arXiv 2602.16994.
#include <algorithm>

#include "builders/cursors.h"
#include "builders/options.h"
#include "builders/registry.h"

namespace treespec {
namespace {

class Rollouts final : public TreeBuilder {
 public:
  explicit Rollouts(const BuilderOptions& options) {
    OptionReader reader("rollouts", options);
    paths_given_ = reader.given("num_paths");
    num_paths_ = reader.integer("num_paths", 4, 1);
    max_depth_ = reader.integer("max_depth", INT32_MAX, 0);
    reader.finish();
  }

  Proposal proposal() const override { return Proposal::kIid; }
  bool makes_chains() const override { return num_paths_ == 1; }
  bool accepts(SourceKind) const override { return true; }
  std::unique_ptr<TreeGrowth> begin(int32_t node_budget, int32_t max_depth,
                                    const RoundKey& key) const override {
    TREESPEC_CHECK(!paths_given_ || num_paths_ <= node_budget,
                   "rollouts: node_budget must hold a node of each of the num_paths = ", num_paths_,
                   " paths, got ", node_budget);
    const int32_t num_paths =
        paths_given_ ? num_paths_ : std::min(num_paths_, std::max(node_budget, 1));
    const int32_t length = std::min({max_depth_, max_depth, node_budget / num_paths});
    return cursor_growth(num_paths, 0, length, key);
  }

 private:
  bool paths_given_;
  int32_t num_paths_, max_depth_;
};

}  // namespace

std::unique_ptr<TreeBuilder> make_rollouts(const BuilderOptions& options) {
  return std::make_unique<Rollouts>(options);
}

}  // namespace treespec
