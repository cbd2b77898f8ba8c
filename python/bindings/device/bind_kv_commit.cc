// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>

#include "ops.h"
#include "structs.h"
#include "treespec/device/kv_commit.h"
#include "treespec/error.h"

namespace treespec::python::device_ops {
namespace {

constexpr py::ssize_t kTableColumns = 6;  // fields of a KvBuffer, each of 8 bytes
static_assert(sizeof(device::KvBuffer) == kTableColumns * sizeof(int64_t));

/// The tensors of a cache, borrowed once and committed in every round. All but the table.
class KvCache {
 public:
  explicit KvCache(const std::vector<py::object>& arrays) : kept_(arrays) {
    DeviceCall call("KvCache");
    for (size_t i = 0; i < arrays.size(); ++i) {
      add(call.strided(detail::message("arrays[", i, "]"), arrays[i], "P*R*"));
    }
    TREESPEC_CHECK(!arrays.empty(), "KvCache: arrays must not be empty");
    cache_.num_buffers = static_cast<int32_t>(arrays.size());
    cache_.num_pages = call.size('P');
    cache_.page_size = call.size('R');
  }

  /// The table of buffers in host memory, to be copied to the device by the caller.
  py::array_t<int64_t> table() const {
    py::array_t<int64_t> out({static_cast<py::ssize_t>(buffers_.size()), kTableColumns});
    std::memcpy(out.mutable_data(), buffers_.data(), buffers_.size() * sizeof buffers_[0]);
    return out;
  }
  int32_t num_pages() const { return cache_.num_pages; }
  int32_t page_size() const { return cache_.page_size; }

  void commit(uintptr_t stream, const py::object& table, const py::object& paths,
              const py::object& prefix_length, const py::object& status,
              const py::object& block_table) const {
    DeviceCall call("commit_kv");
    const Arguments with = arguments(call, table, paths, prefix_length, status, block_table);
    const py::gil_scoped_release release;
    device::commit_kv(stream_of(stream), with.cache, with.paths, with.prefix_length, with.status);
  }

  void commit_and_advance(uintptr_t stream, const py::object& table, const py::object& paths,
                          const py::object& prefix_length, const py::object& workspace,
                          const py::object& status, const py::object& block_table) const {
    DeviceCall call("commit_kv_and_advance");
    const Arguments with = arguments(call, table, paths, prefix_length, status, block_table);
    const size_t bytes = device::commit_kv_workspace_bytes(with.paths.batch);
    void* memory = call.workspace(workspace, bytes);
    const py::gil_scoped_release release;
    device::commit_kv_and_advance(stream_of(stream), with.cache, with.paths, with.prefix_length,
                                  memory, bytes, with.status);
  }

 private:
  struct Arguments {
    device::KvCache cache;
    device::AcceptedPaths paths;
    int32_t* prefix_length;
    uint32_t* status;
  };

  /// `[pages, heads, rows, dim]`; rows are contiguous, the rest is strided.
  void add(const BorrowedArray& array) {
    TREESPEC_CHECK(array.shape[3] <= 1 || array.stride[3] == 1,
                   "KvCache: arrays must have contiguous rows, got a stride of ", array.stride[3]);
    const int64_t item = array.bits / 8;
    device::KvBuffer buffer;
    buffer.data = array.data;
    buffer.page_stride = array.stride[0] * item;
    buffer.outer = array.shape[1];
    buffer.outer_stride = array.stride[1] * item;
    buffer.row_stride = array.stride[2] * item;
    buffer.row_bytes = array.shape[3] * item;
    buffers_.push_back(buffer);
    cache_.max_outer = std::max(cache_.max_outer, buffer.outer);
    cache_.max_row_bytes = std::max(cache_.max_row_bytes, buffer.row_bytes);
  }

  Arguments arguments(DeviceCall& call, const py::object& table, const py::object& paths,
                      const py::object& prefix_length, const py::object& status,
                      const py::object& block_table) const {
    Arguments out{cache_, {}, nullptr, nullptr};
    call.set_size('N', cache_.num_buffers);
    call.set_size('F', kTableColumns);
    out.cache.buffers =
        reinterpret_cast<const device::KvBuffer*>(call.array<const int64_t>("table", table, "NF"));
    out.paths.nodes = call.field<const int32_t>("paths", paths, "nodes", "BC");
    out.paths.num_accepted = call.field<const int32_t>("paths", paths, "num_accepted", "B");
    out.paths.batch = call.size('B');
    out.paths.max_depth = call.size('C') - 1;
    out.prefix_length = call.array<int32_t>("prefix_length", prefix_length, "B");
    out.status = status_of(call, status);
    out.cache.block_table = call.optional<const int32_t>("block_table", block_table, "BT");
    if (out.cache.block_table != nullptr) {
      out.cache.max_pages = call.size('T');
    } else {
      TREESPEC_CHECK(out.paths.batch == cache_.num_pages, "commit_kv: paths must be of ",
                     cache_.num_pages, " sequences, as the cache, got ", out.paths.batch,
                     "; a paged cache needs block_table");
    }
    return out;
  }

  std::vector<py::object> kept_;
  std::vector<device::KvBuffer> buffers_;
  device::KvCache cache_;
};

}  // namespace

void bind_kv_commit(py::module_& m) {
  m.def("commit_kv_workspace_bytes", &device::commit_kv_workspace_bytes, py::arg("batch"));
  // Local, since a second module may bind the same ops.
  py::class_<KvCache>(m, "KvCache", py::module_local(),
                      R"(KV tensors [pages, heads, rows, dim] of a batch, borrowed; rows contiguous.

A contiguous cache has a page per sequence. Other orders of axes come as views.)")
      .def(py::init<const std::vector<py::object>&>(), py::arg("arrays"))
      .def_property_readonly("table", &KvCache::table,
                             "[tensors, 6] int64 in host memory; `commit` wants it on the device.")
      .def_property_readonly("num_pages", &KvCache::num_pages)
      .def_property_readonly("page_size", &KvCache::page_size)
      .def("commit", &KvCache::commit, py::arg("stream"), py::arg("table"), py::arg("paths"),
           py::arg("prefix_length"), py::arg("status"), py::kw_only(),
           py::arg("block_table") = py::none(),
           R"(Moves row prefix_length + nodes[d] of each sequence to row prefix_length + d.

paths: nodes [B, C], num_accepted [B] (-1: nothing to commit). block_table [B, pages of a sequence]
for a paged cache.)")
      .def("commit_and_advance", &KvCache::commit_and_advance, py::arg("stream"), py::arg("table"),
           py::arg("paths"), py::arg("prefix_length"), py::arg("workspace"), py::arg("status"),
           py::kw_only(), py::arg("block_table") = py::none(),
           "The same, and adds num_accepted + 1 to prefix_length of every sequence that moved. "
           "workspace: zero before the first call; every call leaves it so.");
}

}  // namespace treespec::python::device_ops
