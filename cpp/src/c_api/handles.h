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

struct ts_options {
  treespec::BuilderOptions values;
};

struct ts_builder {
  std::string name;
  std::unique_ptr<const treespec::TreeBuilder> builder;
};

struct ts_source {
  std::unique_ptr<treespec::CandidateSource> source;
  int32_t* root_token;  ///< what the source's callback sees at the root; null: it has no callback
};

struct ts_drafter {
  std::unique_ptr<treespec::DraftModel> model;
};

namespace treespec::c {

/// A ts_tree is a TokenTree, so that trees of the core are lent to callbacks without a copy.
inline const TokenTree& tree_of(const char* who, const ts_tree* tree) {
  return *reinterpret_cast<const TokenTree*>(&required(who, "tree", tree));
}
inline const ts_tree* lent(const TokenTree& tree) {
  return reinterpret_cast<const ts_tree*>(&tree);
}
/// Passes to the caller, who frees it with ts_tree_free.
inline ts_tree* owned(std::unique_ptr<TokenTree> tree) {
  return reinterpret_cast<ts_tree*>(tree.release());
}

}  // namespace treespec::c
