// SPDX-License-Identifier: Apache-2.0
// Builders whose children stand at fixed places or are drawn: shapes, paths and slots.
#include "ops.h"
#include "structs.h"
#include "treespec/device/tree_builder.h"

namespace treespec::python::device_ops {
namespace {

/// Arrays of the recorded laws; deterministic trees have none, and None.
device::LawOutput law_of(DeviceCall& call, const py::object& law, int32_t list_width) {
  device::LawOutput out;
  if (law.is_none()) return out;
  const int32_t num_rows = call.size('B') * call.size('M');
  call.set_size('J', num_rows + 1);
  call.set_size('E', num_rows * list_width);
  out.row_of_node = call.field<int32_t>("law", law, "row_of_node", "BM");
  out.row_offset = call.field<int64_t>("law", law, "row_offset", "J");
  out.token = call.field<int32_t>("law", law, "token", "E");
  out.prob = call.field<float>("law", law, "prob", "E");
  return out;
}

// --- shapes --------------------------------------------------------------------------------------

device::ShapeSource shape_of(DeviceCall& call, const py::object& shape) {
  device::ShapeSource out;
  out.parent = call.field<const int32_t>("shape", shape, "parent", "P");
  out.num_places = call.size('P');
  out.max_depth = attribute_or(shape, "max_depth", out.max_depth);
  out.whole_levels = attribute_or(shape, "whole_levels", out.whole_levels);
  return out;
}

void* shape_workspace(DeviceCall& call, const py::object& workspace, const device::Trees& trees,
                      const device::ShapeSource& shape, int32_t list_width, Proposal proposal) {
  return call.workspace(
      workspace, device::shape_workspace_bytes(trees.batch, trees.max_nodes, shape.num_places,
                                               list_width, proposal));
}

void begin_shape(uintptr_t stream, const py::object& shape, int32_t list_width,
                 const std::string& proposal, const py::object& request, const py::object& trees,
                 const py::object& workspace, const py::object& frontier,
                 const py::object& status) {
  DeviceCall call("begin_shape");
  const Proposal mode = parse_proposal(proposal);
  const device::Trees to = whole_trees(call, trees);
  const device::ShapeSource map = shape_of(call, shape);
  const device::BuildRequest wanted = request_of(call, request);
  const device::Frontier nodes = frontier_of(call, frontier);
  void* memory = shape_workspace(call, workspace, to, map, list_width, mode);
  uint32_t* word = status_of(call, status);
  const py::gil_scoped_release release;
  device::begin_shape(stream_of(stream), map, list_width, mode, wanted, to, memory, nodes, word);
}

void grow_shape(uintptr_t stream, const py::object& shape, const std::string& proposal,
                const py::object& key, const py::object& lists, const py::object& trees,
                const py::object& workspace, const py::object& frontier, const py::object& status) {
  DeviceCall call("grow_shape");
  const Proposal mode = parse_proposal(proposal);
  const device::Trees to = whole_trees(call, trees);
  const device::ShapeSource map = shape_of(call, shape);
  const device::DrawOptions draws{mode, keys_of(call, key)};
  const device::ListSource from = lists_of(call, lists);
  const device::Frontier nodes = frontier_of(call, frontier);
  void* memory = shape_workspace(call, workspace, to, map, from.width, mode);
  uint32_t* word = status_of(call, status);
  const py::gil_scoped_release release;
  device::grow_shape(stream_of(stream), map, draws, from, to, memory, nodes, word);
}

void finish_shape(uintptr_t stream, const py::object& shape, int32_t list_width,
                  const std::string& proposal, const py::object& request,
                  const py::object& workspace, const py::object& trees, const py::object& law) {
  DeviceCall call("finish_shape");
  const Proposal mode = parse_proposal(proposal);
  const device::Trees to = whole_trees(call, trees);
  const device::ShapeSource map = shape_of(call, shape);
  const device::BuildRequest wanted = request_of(call, request);
  void* memory = shape_workspace(call, workspace, to, map, list_width, mode);
  const device::LawOutput laws = law_of(call, law, list_width);
  const py::gil_scoped_release release;
  device::finish_shape(stream_of(stream), map, list_width, mode, wanted, memory, to, laws);
}

void bind_shapes(py::module_& m) {
  m.def(
      "shape_workspace_bytes",
      [](int32_t batch, int32_t max_nodes, int32_t num_places, int32_t list_width,
         const std::string& proposal) {
        return device::shape_workspace_bytes(batch, max_nodes, num_places, list_width,
                                             parse_proposal(proposal));
      },
      py::arg("batch"), py::arg("max_nodes"), py::arg("num_places"), py::arg("list_width"),
      py::arg("proposal"));
  m.def("begin_shape", &begin_shape, py::arg("stream"), py::arg("shape"), py::arg("list_width"),
        py::arg("proposal"), py::arg("request"), py::arg("trees"), py::arg("workspace"),
        py::arg("frontier"), py::arg("status"),
        R"(Fixed shapes: starts with the frontier [root].

shape: parent [places], as GrowthMap; max_depth; whole_levels.)");
  m.def("grow_shape", &grow_shape, py::arg("stream"), py::arg("shape"), py::arg("proposal"),
        py::arg("key"), py::arg("lists"), py::arg("trees"), py::arg("workspace"),
        py::arg("frontier"), py::arg("status"),
        "Fills a level. key: 64-bit integers [B, 2], the seed and sequence_id + (position << 32); "
        "None for deterministic trees.");
  m.def("finish_shape", &finish_shape, py::arg("stream"), py::arg("shape"), py::arg("list_width"),
        py::arg("proposal"), py::arg("request"), py::arg("workspace"), py::arg("trees"),
        py::arg("law"),
        R"(Writes every array of `trees`, and the laws of drawn ones.

law: row_of_node [B, M], row_offset [B * M + 1] int64, token and prob [B * M * list_width]; None for
deterministic trees.)");
}

// --- What paths and slots share -----------------------------------------------------------------

/// `Family`: the ops of the builders that draw from lists without a shape.
template <class Family>
void* drawn_workspace(DeviceCall& call, const py::object& workspace, const device::Trees& trees,
                      int32_t list_width) {
  return call.workspace(workspace,
                        Family::workspace_bytes(trees.batch, trees.max_nodes, list_width));
}

template <class Family>
void begin(uintptr_t stream, const py::object& options, int32_t list_width,
           const py::object& request, const py::object& trees, const py::object& workspace,
           const py::object& frontier, const py::object& status) {
  DeviceCall call(Family::begin_name);
  const device::Trees to = whole_trees(call, trees);
  const device::BuildRequest wanted = request_of(call, request);
  const device::Frontier nodes = frontier_of(call, frontier);
  void* memory = drawn_workspace<Family>(call, workspace, to, list_width);
  uint32_t* word = status_of(call, status);
  const auto with = Family::options(call, options);
  const py::gil_scoped_release release;
  Family::begin(stream_of(stream), with, list_width, wanted, to, memory, nodes, word);
}

template <class Family>
void grow(uintptr_t stream, const py::object& options, const py::object& key,
          const py::object& lists, const py::object& trees, const py::object& workspace,
          const py::object& frontier, const py::object& status) {
  DeviceCall call(Family::grow_name);
  const device::Trees to = whole_trees(call, trees);
  const RoundKey* keys = keys_of(call, key);
  const device::ListSource from = lists_of(call, lists);
  const device::Frontier nodes = frontier_of(call, frontier);
  void* memory = drawn_workspace<Family>(call, workspace, to, from.width);
  uint32_t* word = status_of(call, status);
  const auto with = Family::options(call, options);
  const py::gil_scoped_release release;
  Family::grow(stream_of(stream), with, keys, from, to, memory, nodes, word);
}

// --- paths ---------------------------------------------------------------------------------------

device::PathOptions path_options(DeviceCall& call, const py::object& options) {
  device::PathOptions out;
  out.num_paths = attribute_or(options, "num_paths", out.num_paths);
  out.trunk = attribute_or(options, "trunk", out.trunk);
  out.branch = attribute_or(options, "branch", out.branch);
  out.rollouts = attribute_or(options, "rollouts", out.rollouts);
  out.max_depth = attribute_or(options, "max_depth", out.max_depth);
  call.set_size('3', 3);
  out.lengths = call.optional_field<const int32_t>("options", options, "lengths", "B3");
  return out;
}

struct Paths {
  static constexpr auto options = path_options;
  static constexpr auto workspace_bytes = device::paths_workspace_bytes;
  static constexpr auto begin = device::begin_paths;
  static constexpr auto grow = device::grow_paths;
  static constexpr const char *begin_name = "begin_paths", *grow_name = "grow_paths";
};

void finish_paths(uintptr_t stream, int32_t list_width, const py::object& request,
                  const py::object& workspace, const py::object& trees, const py::object& law) {
  DeviceCall call("finish_paths");
  const device::Trees to = whole_trees(call, trees);
  const device::BuildRequest wanted = request_of(call, request);
  void* memory = drawn_workspace<Paths>(call, workspace, to, list_width);
  const device::LawOutput laws = law_of(call, law, list_width);
  const py::gil_scoped_release release;
  device::finish_paths(stream_of(stream), list_width, wanted, memory, to, laws);
}

void bind_paths(py::module_& m) {
  m.def("paths_workspace_bytes", &device::paths_workspace_bytes, py::arg("batch"),
        py::arg("max_nodes"), py::arg("list_width"));
  m.def("begin_paths", &begin<Paths>, py::arg("stream"), py::arg("options"), py::arg("list_width"),
        py::arg("request"), py::arg("trees"), py::arg("workspace"), py::arg("frontier"),
        py::arg("status"),
        R"(Builders "rollouts" and "delayed": starts with the frontier [root].

options: num_paths, trunk, branch, rollouts, max_depth; lengths [B, 3], the first three of every
sequence, or None.)");
  m.def("grow_paths", &grow<Paths>, py::arg("stream"), py::arg("options"), py::arg("key"),
        py::arg("lists"), py::arg("trees"), py::arg("workspace"), py::arg("frontier"),
        py::arg("status"), "Draws a level; key and lists as for grow_shape.");
  m.def("finish_paths", &finish_paths, py::arg("stream"), py::arg("list_width"), py::arg("request"),
        py::arg("workspace"), py::arg("trees"), py::arg("law"),
        "Writes every array of `trees` and their laws, as finish_shape.");
}

// --- slots ---------------------------------------------------------------------------------------

device::SlotOptions slot_options(DeviceCall& call, const py::object& options) {
  device::SlotOptions out;
  out.max_depth = attribute_or(options, "max_depth", out.max_depth);
  out.threshold = attribute_or(options, "threshold", out.threshold);
  out.calibration = calibration_of(call, "options", options);
  return out;
}

struct Slots {
  static constexpr auto options = slot_options;
  static constexpr auto workspace_bytes = device::slots_workspace_bytes;
  static constexpr auto begin = device::begin_slots;
  static constexpr auto grow = device::grow_slots;
  static constexpr const char *begin_name = "begin_slots", *grow_name = "grow_slots";
};

void finish_slots(uintptr_t stream, int32_t list_width, const py::object& request,
                  const py::object& workspace, const py::object& trees, const py::object& law,
                  const py::object& status) {
  DeviceCall call("finish_slots");
  const device::Trees to = whole_trees(call, trees);
  const device::BuildRequest wanted = request_of(call, request);
  void* memory = drawn_workspace<Slots>(call, workspace, to, list_width);
  const device::LawOutput laws = law_of(call, law, list_width);
  uint32_t* word = status_of(call, status);
  const py::gil_scoped_release release;
  device::finish_slots(stream_of(stream), list_width, wanted, memory, to, laws, word);
}

void bind_slots(py::module_& m) {
  m.def("slots_workspace_bytes", &device::slots_workspace_bytes, py::arg("batch"),
        py::arg("max_nodes"), py::arg("list_width"));
  m.def("begin_slots", &begin<Slots>, py::arg("stream"), py::arg("options"), py::arg("list_width"),
        py::arg("request"), py::arg("trees"), py::arg("workspace"), py::arg("frontier"),
        py::arg("status"),
        R"(Builders "dyspec" and "dyspec_threshold": starts with the frontier [root].

options: max_depth, threshold, calibration (float64 [points, 2]). The frontier needs room for M - 1
nodes.)");
  m.def("grow_slots", &grow<Slots>, py::arg("stream"), py::arg("options"), py::arg("key"),
        py::arg("lists"), py::arg("trees"), py::arg("workspace"), py::arg("frontier"),
        py::arg("status"), "Draws slots; key and lists as for grow_shape.");
  m.def("finish_slots", &finish_slots, py::arg("stream"), py::arg("list_width"), py::arg("request"),
        py::arg("workspace"), py::arg("trees"), py::arg("law"), py::arg("status"),
        "Writes every array of `trees` and their laws, as finish_shape.");
}

}  // namespace

void bind_drawn_trees(py::module_& m) {
  bind_shapes(m);
  bind_paths(m);
  bind_slots(m);
}

}  // namespace treespec::python::device_ops
