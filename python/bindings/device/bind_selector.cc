// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include "../selector_sizes.h"
#include "ops.h"
#include "structs.h"
#include "treespec/device/selector.h"

namespace treespec::python::device_ops {
namespace {

device::RootLaws laws_of(DeviceCall& call, const py::object& laws) {
  device::RootLaws out;
  out.target = row_each_of(call, "target_logits", laws.attr("target_logits"), "BV");
  out.draft = row_each_of(call, "draft_logits", laws.attr("draft_logits"), "BW");
  out.root = row_each_of(call, "root_logits", laws.attr("root_logits"), "BW");
  out.sampling = sampling_of(call, "laws.sampling", laws.attr("sampling"));
  out.draft_sampling = sampling_of(call, "laws.draft_sampling", laws.attr("draft_sampling"));
  call.set_size('M', 1);
  out.changes = changes_of(call, py::getattr(laws, "changes", py::none()), out.target.width);
  out.tokens_before = call.field<const int32_t>("laws", laws, "tokens_before", "B");
  return out;
}

size_t workspace_bytes(const py::object& laws) {
  DeviceCall call("root_scalars_workspace_bytes");
  return device::root_scalars_workspace_bytes(laws_of(call, laws));
}

void root_scalars(uintptr_t stream, const py::object& laws, const py::object& workspace,
                  const py::object& scalars, const py::object& status) {
  DeviceCall call("root_scalars");
  const device::RootLaws from = laws_of(call, laws);
  call.set_size('9', 9);
  auto* to = call.array<float>("scalars", scalars, "B9");
  uint32_t* word = status_of(call, status);
  const size_t bytes = device::root_scalars_workspace_bytes(from);
  void* memory = call.workspace(workspace, bytes);
  const py::gil_scoped_release release;
  device::root_scalars(stream_of(stream), from, memory, bytes, to, word);
}

device::Selector selector_of(DeviceCall& call, const py::object& selector) {
  device::Selector out;
  out.sizes = selector_sizes(selector.attr("state_widths").cast<std::vector<int32_t>>(),
                             selector.attr("projection_width").cast<int32_t>(),
                             selector.attr("num_scalars").cast<int32_t>(),
                             selector.attr("layer_widths").cast<std::vector<int32_t>>());
  check_selector(out.sizes);
  const int64_t count = out.sizes.num_parameters();
  TREESPEC_CHECK(count <= INT32_MAX, call.who(), ": parameters must be below 2^31, got ", count);
  call.set_size('P', static_cast<int32_t>(count));
  call.set_size('A', out.sizes.num_outputs());
  out.parameters = call.field<const float>("selector", selector, "parameters", "P");
  out.num_nodes = call.field<const int32_t>("selector", selector, "num_nodes", "A");
  out.depth = call.field<const int32_t>("selector", selector, "depth", "A");
  return out;
}

device::SelectorInputs inputs_of(DeviceCall& call, const SelectorSizes& sizes,
                                 const py::object& inputs) {
  device::SelectorInputs out;
  call.set_size('Q', sizes.num_scalars);
  out.scalars = call.field<const float>("inputs", inputs, "scalars", "BQ");
  out.batch = call.size('B');
  out.node_budget = call.field<const int32_t>("inputs", inputs, "node_budget", "B");
  out.max_depth = call.field<const int32_t>("inputs", inputs, "max_depth", "B");
  const auto states = inputs.attr("states").cast<std::vector<py::object>>();
  TREESPEC_CHECK(static_cast<int32_t>(states.size()) == sizes.num_states, call.who(),
                 ": inputs.states must be ", sizes.num_states, " arrays, got ", states.size());
  for (size_t s = 0; s < states.size(); ++s) {
    call.set_size('H', sizes.state_width[s]);
    out.state[s] = call.array<const float>("inputs.states", states[s], "BH");
  }
  return out;
}

void choose_shapes(uintptr_t stream, const py::object& selector, const py::object& inputs,
                   const py::object& chosen, const py::object& status) {
  DeviceCall call("choose_shapes");
  const device::Selector with = selector_of(call, selector);
  const device::SelectorInputs from = inputs_of(call, with.sizes, inputs);
  auto* to = call.array<int32_t>("chosen", chosen, "B");
  uint32_t* word = status_of(call, status);
  const py::gil_scoped_release release;
  device::choose_shapes(stream_of(stream), with, from, to, word);
}

}  // namespace

void bind_selector(py::module_& m) {
  m.def("root_scalars_workspace_bytes", &workspace_bytes, py::arg("laws"));
  m.def("root_scalars", &root_scalars, py::arg("stream"), py::arg("laws"), py::arg("workspace"),
        py::arg("scalars"), py::arg("status"),
        R"(Writes scalars [B, 9] float32.

laws: target_logits [B, V]; draft_logits and root_logits [B, any width]; sampling and
draft_sampling, as verify has them; changes, as verify has them for trees of one node, or None;
tokens_before [B].)");
  m.def("choose_shapes", &choose_shapes, py::arg("stream"), py::arg("selector"), py::arg("inputs"),
        py::arg("chosen"), py::arg("status"),
        R"(Writes chosen [B], the places of the shapes that DelayedSelector.choose gives.

selector: state_widths, projection_width, num_scalars and layer_widths, numbers as DelayedSelector
takes them; parameters [P] float32, num_nodes and depth [A]. inputs: states, a list of [B, width]
float32; scalars [B, num_scalars] float32; node_budget and max_depth [B].)");
}

}  // namespace treespec::python::device_ops
