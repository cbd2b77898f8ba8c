// SPDX-License-Identifier: Apache-2.0
#include "structs.h"

namespace treespec::python {

device::Trees topology(DeviceCall& call, const py::object& trees) {
  device::Trees out;
  out.num_nodes = call.field<int32_t>("trees", trees, "num_nodes", "B");
  out.parent = call.field<int32_t>("trees", trees, "parent", "BM");
  out.depth = call.field<int32_t>("trees", trees, "depth", "BM");
  out.batch = call.size('B');
  out.max_nodes = call.size('M');
  return out;
}

device::Trees whole_trees(DeviceCall& call, const py::object& trees) {
  device::Trees out = topology(call, trees);
  out.token = call.field<int32_t>("trees", trees, "token", "BM");
  out.path_logprob = call.field<float>("trees", trees, "path_logprob", "BM");
  call.set_size('O', out.max_nodes + 1);
  out.draw_offset = call.field<int32_t>("trees", trees, "draw_offset", "BO");
  out.draw = call.field<int32_t>("trees", trees, "draw", "BD");
  out.max_draws = call.size('D');
  return out;
}

uint32_t* status_of(DeviceCall& call, const py::object& status) {
  return call.array<uint32_t>("status", status, "B");
}

}  // namespace treespec::python
