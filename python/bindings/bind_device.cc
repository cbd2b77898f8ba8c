// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"
#include "treespec/device.h"

namespace treespec::python {
namespace py = pybind11;

void bind_device(py::module_& m) {
  m.def("cuda_built", &cuda_built, "Whether this build holds the CUDA code.");
  m.def("cuda_device_count", &cuda_device_count, "Usable GPUs; 0 without a driver.");
}

}  // namespace treespec::python
