// SPDX-License-Identifier: Apache-2.0
// Best-first tree from one-pass drafters: the likeliest prefixes by per-position marginals (DDTree)
// or by first-order rows (conditional one-shot drafters).
// Source: "DDTree: diffusion draft trees", 2026, arXiv 2604.12989, propositions 1 and 2.
#include "builders/best_first.h"
#include "builders/registry.h"

namespace treespec {

std::unique_ptr<TreeBuilder> make_dtree(const BuilderOptions& options) {
  const auto reads = [](SourceKind kind) { return kind != SourceKind::kExpander; };
  return best_first_builder("dtree", reads, options);
}

}  // namespace treespec
