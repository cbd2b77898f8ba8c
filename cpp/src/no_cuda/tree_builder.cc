// SPDX-License-Identifier: Apache-2.0
#include "treespec/device/tree_builder.h"

#include "no_cuda/unsupported.h"

namespace treespec::device {

void build_best_first(Stream /*stream*/, const ListSource& /*lists*/, int32_t /*max_depth*/,
                      const BuildRequest& /*request*/, const Trees& /*trees*/,
                      uint32_t* /*status*/) {
  throw_no_cuda("build_best_first");
}

size_t layers_workspace_bytes(int32_t /*batch*/, int32_t /*max_nodes*/) {
  throw_no_cuda("layers_workspace_bytes");
}
void begin_layers(Stream /*stream*/, const LayerOptions& /*options*/,
                  const BuildRequest& /*request*/, const Trees& /*trees*/, void* /*workspace*/,
                  const Frontier& /*frontier*/, uint32_t* /*status*/) {
  throw_no_cuda("begin_layers");
}
void grow_layer(Stream /*stream*/, const LayerOptions& /*options*/, const ListSource& /*lists*/,
                const Trees& /*trees*/, void* /*workspace*/, const Frontier& /*frontier*/,
                uint32_t* /*status*/) {
  throw_no_cuda("grow_layer");
}
void finish_layers(Stream /*stream*/, const BuildRequest& /*request*/, const void* /*workspace*/,
                   const Trees& /*trees*/) {
  throw_no_cuda("finish_layers");
}

}  // namespace treespec::device
