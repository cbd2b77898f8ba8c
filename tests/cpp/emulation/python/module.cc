// SPDX-License-Identifier: Apache-2.0
// _core_emulated: treespec._core.device over the emulation, whose device memory is the host's.
#include <pybind11/pybind11.h>

#include "device/memory.h"
#include "device/ops.h"
#include "emulation.h"

namespace treespec::python {

const DeviceMemory kDeviceMemory = {/*kDLCPU*/ 1, "host"};

}  // namespace treespec::python

PYBIND11_MODULE(_core_emulated, m) {
  treespec::python::device_ops::bind_ops(m);
  m.def("set_order", &treespec::simt::emulation::set_order, pybind11::arg("seed"),
        "Order of threads in the launches that follow, on the calling thread.");
}
