// SPDX-License-Identifier: Apache-2.0
// What one node of a top-down walk decides. Rules are templates over the tree, the row pair and the
// coins, so that the same lines decide on the CPU and, by all threads of a block, on a GPU.
#pragma once

#include <cstdint>

#include "treespec/array_view.h"
#include "treespec/hd.h"
#include "treespec/token_tree.h"

namespace treespec {

/// An accepted child, or (-1 and) a token.
struct Step {
  int32_t child = -1;
  int32_t token = -1;
};

}  // namespace treespec
