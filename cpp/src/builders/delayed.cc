// SPDX-License-Identifier: Apache-2.0
// Delayed tree expansion: one drawn path (the trunk), then K drawn continuations of its end. Near
// the root a single draw is usually accepted, so that branching there wastes nodes. Source:
// "Dynamic delayed tree expansion", 2026, arXiv 2602.16994, section 3: (K, L1, L2).
#include <algorithm>

#include "builders/cursors.h"
#include "builders/options.h"
#include "builders/registry.h"

namespace treespec {
namespace {

constexpr int32_t kOpen = -1;    // not given: chosen by the budget
constexpr int32_t kLongest = 8;  // of a part whose length is chosen

class Delayed final : public TreeBuilder {
 public:
  explicit Delayed(const BuilderOptions& options) {
    OptionReader reader("delayed", options);
    num_paths_ = reader.integer("num_paths", 3, 1);
    trunk_ = reader.integer("trunk", kOpen, 0);
    branch_ = reader.integer("branch", kOpen, 0);
    max_depth_ = reader.integer("max_depth", INT32_MAX, 0);
    reader.finish();
  }

  Proposal proposal() const override { return Proposal::kIid; }
  bool makes_chains() const override { return num_paths_ == 1; }
  bool accepts(SourceKind) const override { return true; }
  std::unique_ptr<TreeGrowth> begin(int32_t node_budget, int32_t max_depth,
                                    const RoundKey& key) const override {
    const int64_t least = int64_t{num_paths_} * std::max(branch_, 0) + std::max(trunk_, 0);
    TREESPEC_CHECK(least <= node_budget,
                   "delayed: node_budget must hold trunk + num_paths * branch = ", least,
                   " nodes, got ", node_budget);
    int32_t trunk = trunk_, branch = branch_;
    if (branch == kOpen) {
      branch = std::min(
          kLongest, trunk == kOpen ? static_cast<int32_t>(node_budget / (int64_t{num_paths_} + 1))
                                   : (node_budget - trunk) / num_paths_);
    }
    if (trunk == kOpen) trunk = std::min(kLongest, node_budget - num_paths_ * branch);
    const int32_t depth = std::min(max_depth_, max_depth);
    trunk = std::min(trunk, depth);
    return cursor_growth(num_paths_, trunk, std::min(branch, depth - trunk), key);
  }

 private:
  int32_t num_paths_, trunk_, branch_, max_depth_;
};

}  // namespace

std::unique_ptr<TreeBuilder> make_delayed(const BuilderOptions& options) {
  return std::make_unique<Delayed>(options);
}

}  // namespace treespec
