// SPDX-License-Identifier: Apache-2.0
#include "ops.h"
#include "structs.h"
#include "treespec/device/tree_builder.h"
#include "treespec/error.h"

namespace treespec::python::device_ops {
namespace {

/// `[B, D, K]` lists without `next`, `[B, D, R, K]` with it. Axis D is L here: D are draws.
device::ListSource tables(DeviceCall& call, const py::object& lists) {
  const bool linked = !py::getattr(lists, "next", py::none()).is_none();
  const char* axes = linked ? "BLRK" : "BLK";
  device::ListSource out;
  out.kind = linked ? SourceKind::kTransitions : SourceKind::kMarginals;
  out.token = call.field<const int32_t>("lists", lists, "token", axes);
  out.logprob = call.field<const float>("lists", lists, "logprob", axes);
  out.next = call.optional_field<const int32_t>("lists", lists, "next", axes);
  out.depth = call.size('L');
  out.num_rows = linked ? call.size('R') : 1;
  out.width = call.size('K');
  return out;
}

device::BuildRequest request_of(DeviceCall& call, const py::object& request) {
  return {call.field<const int32_t>("request", request, "node_budget", "B"),
          call.optional_field<const int32_t>("request", request, "root_token", "B")};
}

void build_best_first(uintptr_t stream, const py::object& lists, int32_t max_depth,
                      const py::object& request, const py::object& trees,
                      const py::object& status) {
  DeviceCall call("build_best_first");
  const device::ListSource from = tables(call, lists);
  const device::BuildRequest wanted = request_of(call, request);
  const device::Trees to = whole_trees(call, trees);
  uint32_t* word = status_of(call, status);
  const py::gil_scoped_release release;
  device::build_best_first(stream_of(stream), from, max_depth, wanted, to, word);
}

}  // namespace

void bind_tree_builder(py::module_& m) {
  m.def("build_best_first", &build_best_first, py::arg("stream"), py::arg("lists"),
        py::arg("max_depth"), py::arg("request"), py::arg("trees"), py::arg("status"),
        R"(Builder "dtree": writes every array of `trees`.

lists: token and logprob [B, D, K], or [B, D, R, K] with `next`, as Marginals and Transitions.
request: node_budget [B], root_token [B] or None.)");
}

}  // namespace treespec::python::device_ops
