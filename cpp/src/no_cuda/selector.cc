// SPDX-License-Identifier: Apache-2.0
#include "treespec/device/selector.h"

#include "no_cuda/unsupported.h"

namespace treespec::device {

size_t root_scalars_workspace_bytes(const RootLaws& /*laws*/) {
  throw_no_cuda("root_scalars_workspace_bytes");
}

void root_scalars(Stream /*stream*/, const RootLaws& /*laws*/, void* /*workspace*/,
                  size_t /*workspace_bytes*/, float* /*scalars*/, uint32_t* /*status*/) {
  throw_no_cuda("root_scalars");
}

void choose_shapes(Stream /*stream*/, const Selector& /*selector*/,
                   const SelectorInputs& /*inputs*/, int32_t* /*chosen*/, uint32_t* /*status*/) {
  throw_no_cuda("choose_shapes");
}

}  // namespace treespec::device
