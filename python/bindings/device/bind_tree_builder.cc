// SPDX-License-Identifier: Apache-2.0
#include "ops.h"
#include "structs.h"
#include "treespec/device/tree_builder.h"

namespace treespec::python::device_ops {
namespace {

void build_best_first(uintptr_t stream, const py::object& lists, int32_t max_depth,
                      const py::object& request, const py::object& trees,
                      const py::object& status) {
  DeviceCall call("build_best_first");
  const device::ListSource from = lists_of(call, lists);
  const device::BuildRequest wanted = request_of(call, request);
  const device::Trees to = whole_trees(call, trees);
  uint32_t* word = status_of(call, status);
  const py::gil_scoped_release release;
  device::build_best_first(stream_of(stream), from, max_depth, wanted, to, word);
}

// --- layers --------------------------------------------------------------------------------------

device::LayerOptions layer_options(const py::object& options) {
  device::LayerOptions out;
  out.max_depth = attribute_or(options, "max_depth", out.max_depth);
  out.max_calls = attribute_or(options, "max_calls", out.max_calls);
  out.width = attribute_or(options, "width", out.width);
  out.threshold = attribute_or(options, "threshold", out.threshold);
  out.floor = attribute_or(options, "floor", out.floor);
  out.width_ratio = attribute_or(options, "width_ratio", out.width_ratio);
  out.constant_growth = attribute_or(options, "constant_growth", out.constant_growth);
  return out;
}

void* layers_workspace(DeviceCall& call, const py::object& workspace, const device::Trees& trees) {
  return call.workspace(workspace, device::layers_workspace_bytes(trees.batch, trees.max_nodes));
}

void begin_layers(uintptr_t stream, const py::object& options, const py::object& request,
                  const py::object& trees, const py::object& workspace, const py::object& frontier,
                  const py::object& status) {
  DeviceCall call("begin_layers");
  const device::Trees to = whole_trees(call, trees);
  const device::BuildRequest wanted = request_of(call, request);
  const device::Frontier nodes = frontier_of(call, frontier);
  void* memory = layers_workspace(call, workspace, to);
  uint32_t* word = status_of(call, status);
  const device::LayerOptions with = layer_options(options);
  const py::gil_scoped_release release;
  device::begin_layers(stream_of(stream), with, wanted, to, memory, nodes, word);
}

void grow_layer(uintptr_t stream, const py::object& options, const py::object& lists,
                const py::object& trees, const py::object& workspace, const py::object& frontier,
                const py::object& status) {
  DeviceCall call("grow_layer");
  const device::Trees to = whole_trees(call, trees);
  const device::ListSource from = lists_of(call, lists);
  const device::Frontier nodes = frontier_of(call, frontier);
  void* memory = layers_workspace(call, workspace, to);
  uint32_t* word = status_of(call, status);
  const device::LayerOptions with = layer_options(options);
  const py::gil_scoped_release release;
  device::grow_layer(stream_of(stream), with, from, to, memory, nodes, word);
}

void finish_layers(uintptr_t stream, const py::object& request, const py::object& workspace,
                   const py::object& trees) {
  DeviceCall call("finish_layers");
  const device::Trees to = whole_trees(call, trees);
  const device::BuildRequest wanted = request_of(call, request);
  void* memory = layers_workspace(call, workspace, to);
  const py::gil_scoped_release release;
  device::finish_layers(stream_of(stream), wanted, memory, to);
}

}  // namespace

void bind_tree_builder(py::module_& m) {
  m.def("build_best_first", &build_best_first, py::arg("stream"), py::arg("lists"),
        py::arg("max_depth"), py::arg("request"), py::arg("trees"), py::arg("status"),
        R"(Builder "dtree": writes every array of `trees`.

lists: kind, token, logprob and next, as Marginals [B, D, K] or Transitions [B, D, R, K].
request: node_budget [B], root_token [B] or None.)");
  m.def("layers_workspace_bytes", &device::layers_workspace_bytes, py::arg("batch"),
        py::arg("max_nodes"));
  m.def("begin_layers", &begin_layers, py::arg("stream"), py::arg("options"), py::arg("request"),
        py::arg("trees"), py::arg("workspace"), py::arg("frontier"), py::arg("status"),
        R"(Builders "opt_tree" and "eagle2": starts with the frontier [root].

options: max_depth, max_calls, width, threshold, floor, width_ratio, constant_growth. frontier:
num_nodes [B]; index, parent, token, depth and state [B, F].)");
  m.def(
      "grow_layer", &grow_layer, py::arg("stream"), py::arg("options"), py::arg("lists"),
      py::arg("trees"), py::arg("workspace"), py::arg("frontier"), py::arg("status"),
      "Takes the rows of the frontier, from tables or as an expander's [B, rows, K], and replaces "
      "the frontier.");
  m.def("finish_layers", &finish_layers, py::arg("stream"), py::arg("request"),
        py::arg("workspace"), py::arg("trees"), "Writes every array of `trees`.");
}

}  // namespace treespec::python::device_ops
