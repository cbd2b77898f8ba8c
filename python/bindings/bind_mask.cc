// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"
#include "dlpack_view.h"
#include "treespec/error.h"
#include "treespec/tree_mask.h"

namespace treespec::python {
namespace {

/// Fills `out` [N - first, prefix + N]: bytes take the bool form, floats the additive one.
void fill_mask(const py::object& parent, const py::object& depth, int32_t first,
               int32_t prefix_length, int32_t window, const py::object& out) {
  const IntArray parents = int_array(parent, "mask: parent");
  const IntArray depths = int_array(depth, "mask: depth");
  const BorrowedArray target = borrow(out, "mask: out");
  const int64_t rows = parents.size() - first;
  const int64_t width = prefix_length + static_cast<int64_t>(parents.size());
  TREESPEC_CHECK(target.writeable, "mask: out must be writeable, got a read-only array");
  const bool fits = target.ndim() == 2 && target.shape[0] == rows && target.shape[1] == width &&
                    (rows <= 1 || target.stride[0] == width) &&
                    (width <= 1 || target.stride[1] == 1);
  TREESPEC_CHECK(fits, "mask: out must be a contiguous [", rows, ", ", width, "], got ",
                 target.shape_text());
  if (!target.is_float && target.bits == 8) {
    return bool_mask(view(parents), view(depths), first, prefix_length, window,
                     static_cast<uint8_t*>(target.data));
  }
  additive_mask(view(parents), view(depths), first, prefix_length, window,
                float_dtype(target, "mask: out"), target.data);
}

}  // namespace

void bind_mask(py::module_& m) {
  m.def("fill_mask", &fill_mask, py::arg("parent"), py::arg("depth"), py::arg("first"),
        py::arg("prefix_length"), py::arg("window"), py::arg("out"),
        R"(Fills `out` [N - first, prefix + N] for the queries first..N-1.

One-byte arrays take 1 for visible, floats 0 for visible and the lowest finite value for hidden.
window > 0 hides keys with query position - key position >= window.)");
  m.def(
      "ancestor_bits",
      [](const py::object& parent) {
        const IntArray parents = int_array(parent, "ancestor_bits: parent");
        const std::vector<uint32_t> bits = ancestor_mask(view(parents));
        const py::ssize_t n = parents.size();
        return py::array_t<uint32_t>({n, (n + 31) / 32}, bits.data());
      },
      py::arg("parent"),
      "[N, ceil(N / 32)] uint32: bit j of row i is set iff j is i or its ancestor.");
  m.def(
      "tree_positions",
      [](const py::object& depth, int32_t prefix_length) {
        return to_numpy(
            tree_positions(view(int_array(depth, "tree_positions: depth")), prefix_length));
      },
      py::arg("depth"), py::arg("prefix_length"), "[N] int32: prefix_length + depth.");
  m.def(
      "preorder_intervals",
      [](const py::object& parent) {
        const Intervals out =
            preorder_intervals(view(int_array(parent, "preorder_intervals: parent")));
        return std::make_tuple(to_numpy(out.rank), to_numpy(out.end));
      },
      py::arg("parent"), "(rank, end): j is i or its ancestor iff rank[j] <= rank[i] < end[j].");
  m.def(
      "sequence_ids",
      [](const py::object& parent) {
        const SequenceIds out = sequence_ids(view(int_array(parent, "sequence_ids: parent")));
        return std::make_tuple(to_numpy(out.offset), to_numpy(out.id));
      },
      py::arg("parent"),
      "(offset, id): sequences (one per leaf) of node i are id[offset[i]:offset[i + 1]].");
}

}  // namespace treespec::python
