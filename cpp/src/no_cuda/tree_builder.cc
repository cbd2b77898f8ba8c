// SPDX-License-Identifier: Apache-2.0
#include "treespec/device/tree_builder.h"

#include "no_cuda/unsupported.h"

namespace treespec::device {

void build_best_first(Stream /*stream*/, const ListSource& /*lists*/, int32_t /*max_depth*/,
                      const BuildRequest& /*request*/, const Trees& /*trees*/,
                      uint32_t* /*status*/) {
  throw_no_cuda("build_best_first");
}

}  // namespace treespec::device
