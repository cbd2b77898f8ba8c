// SPDX-License-Identifier: Apache-2.0
// One path: the draft of plain speculative decoding.
// Source: Leviathan et al., 2023, arXiv 2211.17192; Chen et al., 2023, arXiv 2302.01318.
#include <algorithm>

#include "builders/fixed_shape.h"
#include "builders/options.h"
#include "builders/registry.h"

namespace treespec {
namespace {

/// A place is a depth: a path of any length takes no memory.
class Path final : public TreeShape {
 public:
  explicit Path(int32_t length) : length_(length) {}
  int32_t num_children(int32_t place) const override { return place < length_ ? 1 : 0; }
  int32_t child(int32_t place, int32_t) const override { return place + 1; }

 private:
  int32_t length_;
};

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
    return fixed_shape_growth(std::make_shared<Path>(length), proposal_, key);
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
