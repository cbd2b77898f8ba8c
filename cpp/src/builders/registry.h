// SPDX-License-Identifier: Apache-2.0
// Makers of every builder, one per file of this folder.
#pragma once

#include <memory>

#include "treespec/tree_builder.h"

namespace treespec {

std::unique_ptr<TreeBuilder> make_chain(const BuilderOptions& options);
std::unique_ptr<TreeBuilder> make_delayed(const BuilderOptions& options);
std::unique_ptr<TreeBuilder> make_dtree(const BuilderOptions& options);
std::unique_ptr<TreeBuilder> make_dyspec(const BuilderOptions& options);
std::unique_ptr<TreeBuilder> make_dyspec_threshold(const BuilderOptions& options);
std::unique_ptr<TreeBuilder> make_eagle2(const BuilderOptions& options);
std::unique_ptr<TreeBuilder> make_kary(const BuilderOptions& options);
std::unique_ptr<TreeBuilder> make_medusa_choices(const BuilderOptions& options);
std::unique_ptr<TreeBuilder> make_opt_tree(const BuilderOptions& options);
std::unique_ptr<TreeBuilder> make_rollouts(const BuilderOptions& options);
std::unique_ptr<TreeBuilder> make_sequoia(const BuilderOptions& options);
std::unique_ptr<TreeBuilder> make_top_plus_one(const BuilderOptions& options);
std::unique_ptr<TreeBuilder> make_trie(const BuilderOptions& options);

}  // namespace treespec
