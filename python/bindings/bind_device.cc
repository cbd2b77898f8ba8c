// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"
#include "device/ops.h"
#include "treespec/device.h"

namespace treespec::python {
namespace py = pybind11;

void bind_device(py::module_& m) {
  m.def("cuda_built", &cuda_built, "Whether this build holds the CUDA code.");
  m.def("cuda_device_count", &cuda_device_count, "Usable GPUs; 0 without a driver.");
  auto ops = m.def_submodule("device", R"(The ops of treespec/device/*.h, on arrays in CUDA memory.

`stream` is the integer of a cudaStream_t. Arrays come by DLPack and are not copied; structs are
objects with the fields as attributes; outputs, workspaces and status are the caller's. Everything
is asynchronous on the stream. Raises NotImplementedError without CUDA.)");
  device_ops::bind_ops(ops);
}

}  // namespace treespec::python
