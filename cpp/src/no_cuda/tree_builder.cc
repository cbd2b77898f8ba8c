// SPDX-License-Identifier: Apache-2.0
#include "treespec/device/tree_builder.h"

#include "no_cuda/unsupported.h"

namespace treespec::device {

void build_best_first(Stream, const ListSource&, int32_t, const BuildRequest&, const Trees&,
                      uint32_t*) {
  throw_no_cuda("build_best_first");
}

size_t layers_workspace_bytes(int32_t, int32_t) { throw_no_cuda("layers_workspace_bytes"); }
void begin_layers(Stream, const LayerOptions&, const BuildRequest&, const Trees&, void*,
                  const Frontier&, uint32_t*) {
  throw_no_cuda("begin_layers");
}
void grow_layer(Stream, const LayerOptions&, const ListSource&, const Trees&, void*,
                const Frontier&, uint32_t*) {
  throw_no_cuda("grow_layer");
}
void finish_layers(Stream, const BuildRequest&, const void*, const Trees&) {
  throw_no_cuda("finish_layers");
}

size_t shape_workspace_bytes(int32_t, int32_t, int32_t, int32_t, Proposal) {
  throw_no_cuda("shape_workspace_bytes");
}
void begin_shape(Stream, const ShapeSource&, int32_t, Proposal, const BuildRequest&, const Trees&,
                 void*, const Frontier&, uint32_t*) {
  throw_no_cuda("begin_shape");
}
void grow_shape(Stream, const ShapeSource&, const DrawOptions&, const ListSource&, const Trees&,
                void*, const Frontier&, uint32_t*) {
  throw_no_cuda("grow_shape");
}
void finish_shape(Stream, const ShapeSource&, int32_t, Proposal, const BuildRequest&, void*,
                  const Trees&, const LawOutput&) {
  throw_no_cuda("finish_shape");
}

size_t paths_workspace_bytes(int32_t, int32_t, int32_t) { throw_no_cuda("paths_workspace_bytes"); }
void begin_paths(Stream, const PathOptions&, int32_t, const BuildRequest&, const Trees&, void*,
                 const Frontier&, uint32_t*) {
  throw_no_cuda("begin_paths");
}
void grow_paths(Stream, const PathOptions&, const RoundKey*, const ListSource&, const Trees&, void*,
                const Frontier&, uint32_t*) {
  throw_no_cuda("grow_paths");
}
void finish_paths(Stream, int32_t, const BuildRequest&, void*, const Trees&, const LawOutput&) {
  throw_no_cuda("finish_paths");
}

size_t slots_workspace_bytes(int32_t, int32_t, int32_t) { throw_no_cuda("slots_workspace_bytes"); }
void begin_slots(Stream, const SlotOptions&, int32_t, const BuildRequest&, const Trees&, void*,
                 const Frontier&, uint32_t*) {
  throw_no_cuda("begin_slots");
}
void grow_slots(Stream, const SlotOptions&, const RoundKey*, const ListSource&, const Trees&, void*,
                const Frontier&, uint32_t*) {
  throw_no_cuda("grow_slots");
}
void finish_slots(Stream, int32_t, const BuildRequest&, void*, const Trees&, const LawOutput&,
                  uint32_t*) {
  throw_no_cuda("finish_slots");
}

}  // namespace treespec::device
