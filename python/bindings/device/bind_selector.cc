// SPDX-License-Identifier: Apache-2.0
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

}  // namespace

void bind_selector(py::module_& m) {
  m.def("root_scalars_workspace_bytes", &workspace_bytes, py::arg("laws"));
  m.def("root_scalars", &root_scalars, py::arg("stream"), py::arg("laws"), py::arg("workspace"),
        py::arg("scalars"), py::arg("status"),
        R"(Writes scalars [B, 9] float32.

laws: target_logits [B, V]; draft_logits and root_logits [B, any width]; sampling and
draft_sampling, as verify has them; changes, as verify has them for trees of one node, or None;
tokens_before [B].)");
}

}  // namespace treespec::python::device_ops
