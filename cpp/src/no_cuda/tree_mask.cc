// SPDX-License-Identifier: Apache-2.0
#include "treespec/device/tree_mask.h"

#include "no_cuda/unsupported.h"

namespace treespec::device {

void tree_layout(Stream, const Trees&, const int32_t*, const TreeLayout&, uint32_t*) {
  throw_no_cuda("tree_layout");
}
void bool_mask(Stream, const Trees&, const TreeLayout&, const int32_t*, const MaskShape&, uint8_t*,
               uint32_t*) {
  throw_no_cuda("bool_mask");
}
void additive_mask(Stream, const Trees&, const TreeLayout&, const int32_t*, const MaskShape&, DType,
                   void*, uint32_t*) {
  throw_no_cuda("additive_mask");
}
void preorder_intervals(Stream, const Trees&, int32_t*, int32_t*, uint32_t*) {
  throw_no_cuda("preorder_intervals");
}
void sequence_ids(Stream, const Trees&, int32_t, int32_t*, int32_t*, uint32_t*) {
  throw_no_cuda("sequence_ids");
}

}  // namespace treespec::device
