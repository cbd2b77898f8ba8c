// SPDX-License-Identifier: Apache-2.0
// What is behind the handles that several files open.
#pragma once

#include <memory>
#include <string>

#include "c_api/arguments.h"
#include "treespec/decoder.h"
#include "treespec/source.h"
#include "treespec/token_tree.h"
#include "treespec/tree_builder.h"
#include "treespec/treespec_c.h"

struct treespec_options {
  treespec::BuilderOptions values;
};

struct treespec_builder {
  std::string name;
  std::unique_ptr<const treespec::TreeBuilder> builder;
};

struct treespec_source {
  std::unique_ptr<treespec::CandidateSource> source;
  int32_t* root_token;  ///< what the source's callback sees at the root; null: it has no callback
};

struct treespec_drafter {
  std::unique_ptr<treespec::DraftModel> model;
};

namespace treespec::c {

/// A treespec_tree is a TokenTree, so that trees of the core are lent to callbacks without a copy.
inline const TokenTree& tree_of(const char* who, const treespec_tree* tree) {
  return *reinterpret_cast<const TokenTree*>(&required(who, "tree", tree));
}
inline const treespec_tree* lent(const TokenTree& tree) {
  return reinterpret_cast<const treespec_tree*>(&tree);
}
/// Passes to the caller, who frees it with treespec_tree_free.
inline treespec_tree* owned(std::unique_ptr<TokenTree> tree) {
  return reinterpret_cast<treespec_tree*>(tree.release());
}

}  // namespace treespec::c
