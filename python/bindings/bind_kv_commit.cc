// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include "bindings.h"
#include "dlpack_view.h"
#include "treespec/error.h"
#include "treespec/kv_commit.h"

namespace treespec::python {
namespace {

/// KV tensors of a sequence, borrowed once and committed many times.
class KvBuffers {
 public:
  explicit KvBuffers(const std::vector<py::object>& arrays) {
    for (const py::object& array : arrays) add(borrow(array, "KvBuffers"));
  }

  void commit(int64_t base, const py::object& nodes) const {
    const IntArray ids = int_array(nodes, "commit_kv: nodes");
    const py::gil_scoped_release release;
    commit_kv(buffers_, base, view(ids));
  }

 private:
  /// `[..., rows, dim]`; the innermost leading axis is the buffer's outer one.
  void add(BorrowedArray array) {
    TREESPEC_CHECK(array.writeable, "KvBuffers: arrays must be writeable, got a read-only one");
    const int64_t n = array.ndim();
    TREESPEC_CHECK(n >= 2 && (array.shape[static_cast<size_t>(n - 1)] <= 1 ||
                              array.stride[static_cast<size_t>(n - 1)] == 1),
                   "KvBuffers: arrays must be [..., rows, dim] with contiguous rows, got ",
                   array.shape_text());
    const int64_t item = array.bits / 8;
    KvBuffer buffer;
    buffer.row_stride = array.stride[static_cast<size_t>(n - 2)] * item;
    buffer.row_bytes = array.shape[static_cast<size_t>(n - 1)] * item;
    buffer.num_rows = array.shape[static_cast<size_t>(n - 2)];
    buffer.outer = n >= 3 ? array.shape[static_cast<size_t>(n - 3)] : 1;
    buffer.outer_stride = n >= 3 ? array.stride[static_cast<size_t>(n - 3)] * item : 0;
    add_leading(array, 0, n - 3, static_cast<char*>(array.data), item, buffer);
    kept_.push_back(std::move(array.owner));
  }

  void add_leading(const BorrowedArray& array, int64_t axis, int64_t end, char* data, int64_t item,
                   KvBuffer buffer) {
    if (axis >= end) {
      buffer.data = data;
      buffers_.push_back(buffer);
      return;
    }
    const auto a = static_cast<size_t>(axis);
    for (int64_t i = 0; i < array.shape[a]; ++i) {
      add_leading(array, axis + 1, end, data + i * array.stride[a] * item, item, buffer);
    }
  }

  std::vector<py::object> kept_;
  std::vector<KvBuffer> buffers_;
};

}  // namespace

void bind_kv_commit(py::module_& m) {
  py::class_<KvBuffers>(m, "KvBuffers", "KV tensors [..., rows, dim] of one sequence, borrowed.")
      .def(py::init<const std::vector<py::object>&>(), py::arg("arrays"))
      .def("commit", &KvBuffers::commit, py::arg("base"), py::arg("nodes"),
           "Moves row base + nodes[d] to base + d in every tensor, in place; nodes ascend.");
}

}  // namespace treespec::python
