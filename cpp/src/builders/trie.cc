// SPDX-License-Identifier: Apache-2.0
// The best nodes of a scored trie (n-gram, suffix, retrieval drafters): their own tree, cut to
// budget.
#include "builders/best_first.h"
#include "builders/registry.h"

namespace treespec {

std::unique_ptr<TreeBuilder> make_trie(const BuilderOptions& options) {
  const auto reads = [](SourceKind kind) { return kind == SourceKind::kTrie; };
  return best_first_builder("trie", reads, options);
}

}  // namespace treespec
