// SPDX-License-Identifier: Apache-2.0
#include "ops.h"
#include "structs.h"
#include "treespec/device/tree_mask.h"
#include "treespec/error.h"

namespace treespec::python::device_ops {
namespace {

void layout(uintptr_t stream, const py::object& trees, const py::object& prefix_length,
            const py::object& layout, const py::object& status) {
  DeviceCall call("tree_layout");
  const device::Trees of = topology(call, trees);
  const auto* prefix = call.array<const int32_t>("prefix_length", prefix_length, "B");
  call.set_size('W', device::mask_words(of.max_nodes));
  device::TreeLayout out;
  out.ancestor_bits = call.field<uint32_t>("layout", layout, "ancestor_bits", "BMW");
  out.position = call.field<int32_t>("layout", layout, "position", "BM");
  out.first_child = call.optional_field<int32_t>("layout", layout, "first_child", "BM");
  out.next_sibling = call.optional_field<int32_t>("layout", layout, "next_sibling", "BM");
  uint32_t* word = status_of(call, status);
  const py::gil_scoped_release release;
  device::tree_layout(stream_of(stream), of, prefix, out, word);
}

void fill_mask(uintptr_t stream, const py::object& trees, const py::object& layout,
               const py::object& prefix_length, const py::object& out, const py::object& status,
               int32_t first, int32_t window) {
  DeviceCall call("fill_mask");
  const device::Trees of = topology(call, trees);
  const auto* prefix = call.array<const int32_t>("prefix_length", prefix_length, "B");
  call.set_size('W', device::mask_words(of.max_nodes));
  device::TreeLayout from;
  from.ancestor_bits = call.field<uint32_t>("layout", layout, "ancestor_bits", "BMW");
  from.position = call.field<int32_t>("layout", layout, "position", "BM");
  uint32_t* word = status_of(call, status);
  TREESPEC_CHECK(first >= 0 && first <= of.max_nodes, "fill_mask: first must be in [0, ",
                 of.max_nodes, "], got ", first);
  call.set_size('Q', of.max_nodes - first);
  const BorrowedArray target = call.strided("out", out, "BQC");
  TREESPEC_CHECK(target.is_contiguous(), "fill_mask: out must be contiguous");
  const device::MaskShape shape{call.size('C'), first, window};
  const bool bytes = !target.is_float && target.bits == 8;
  const DType dtype = bytes ? DType::kFloat32 : float_dtype(target, "fill_mask: out");
  const py::gil_scoped_release release;
  if (bytes) {
    device::bool_mask(stream_of(stream), of, from, prefix, shape,
                      static_cast<uint8_t*>(target.data), word);
  } else {
    device::additive_mask(stream_of(stream), of, from, prefix, shape, dtype, target.data, word);
  }
}

void preorder_intervals(uintptr_t stream, const py::object& trees, const py::object& rank,
                        const py::object& end, const py::object& status) {
  DeviceCall call("preorder_intervals");
  const device::Trees of = topology(call, trees);
  auto* ranks = call.array<int32_t>("rank", rank, "BM");
  auto* ends = call.array<int32_t>("end", end, "BM");
  uint32_t* word = status_of(call, status);
  const py::gil_scoped_release release;
  device::preorder_intervals(stream_of(stream), of, ranks, ends, word);
}

void sequence_ids(uintptr_t stream, const py::object& trees, const py::object& offset,
                  const py::object& id, const py::object& status) {
  DeviceCall call("sequence_ids");
  const device::Trees of = topology(call, trees);
  call.set_size('O', of.max_nodes + 1);
  auto* offsets = call.array<int32_t>("offset", offset, "BO");
  auto* ids = call.array<int32_t>("id", id, "BI");
  uint32_t* word = status_of(call, status);
  const py::gil_scoped_release release;
  device::sequence_ids(stream_of(stream), of, call.size('I'), offsets, ids, word);
}

}  // namespace

void bind_tree_mask(py::module_& m) {
  m.def("tree_layout", &layout, py::arg("stream"), py::arg("trees"), py::arg("prefix_length"),
        py::arg("layout"), py::arg("status"),
        "Writes layout.ancestor_bits [B, M, ceil(M / 32)] and layout.position [B, M]; also "
        "first_child and next_sibling [B, M] where they are not None.");
  m.def("fill_mask", &fill_mask, py::arg("stream"), py::arg("trees"), py::arg("layout"),
        py::arg("prefix_length"), py::arg("out"), py::arg("status"), py::kw_only(),
        py::arg("first") = 0, py::arg("window") = 0,
        R"(Fills `out` [B, M - first, columns] from the bits and positions of `layout`.

One-byte arrays take 1 for visible, floats 0 for visible and the lowest finite value for hidden.
window > 0 hides keys with query position - key position >= window.)");
  m.def("preorder_intervals", &preorder_intervals, py::arg("stream"), py::arg("trees"),
        py::arg("rank"), py::arg("end"), py::arg("status"),
        "Writes [B, M]: j is i or its ancestor iff rank[j] <= rank[i] < end[j].");
  m.def("sequence_ids", &sequence_ids, py::arg("stream"), py::arg("trees"), py::arg("offset"),
        py::arg("id"), py::arg("status"),
        "Writes offset [B, M + 1] and id [B, capacity]: the leaves of node i of sequence b are "
        "id[b, offset[b, i]:offset[b, i + 1]].");
}

}  // namespace treespec::python::device_ops
