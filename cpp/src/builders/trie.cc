// SPDX-License-Identifier: Apache-2.0
// The best nodes of a scored trie (n-gram, suffix, retrieval drafters): their own tree, cut to
// budget.
#include <algorithm>

#include "builders/best_first.h"
#include "builders/options.h"
#include "builders/registry.h"

namespace treespec {
namespace {

class TrieBuilder final : public TreeBuilder {
 public:
  explicit TrieBuilder(const BuilderOptions& options) {
    OptionReader reader("trie", options);
    max_depth_ = reader.integer("max_depth", INT32_MAX, 0);
    scores_ = read_score_options("trie", reader);
    reader.finish();
  }

  Proposal proposal() const override { return Proposal::kDeterministic; }
  bool accepts(SourceKind kind) const override { return kind == SourceKind::kTrie; }
  std::unique_ptr<TreeGrowth> begin(int32_t node_budget, int32_t max_depth,
                                    const RoundKey&) const override {
    return best_first_growth(node_budget, std::min(max_depth_, max_depth), scores_);
  }

 private:
  int32_t max_depth_;
  ScoreOptions scores_;
};

}  // namespace

std::unique_ptr<TreeBuilder> make_trie(const BuilderOptions& options) {
  return std::make_unique<TrieBuilder>(options);
}

}  // namespace treespec
