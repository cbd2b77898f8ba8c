// SPDX-License-Identifier: Apache-2.0
#include "treespec/device/selector.h"

#include "no_cuda/unsupported.h"

namespace treespec::device {

void choose_shapes(Stream /*stream*/, const Selector& /*selector*/,
                   const SelectorInputs& /*inputs*/, int32_t* /*chosen*/, uint32_t* /*status*/) {
  throw_no_cuda("choose_shapes");
}

}  // namespace treespec::device
