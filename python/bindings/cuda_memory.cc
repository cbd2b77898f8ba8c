// SPDX-License-Identifier: Apache-2.0
#include "device/memory.h"

namespace treespec::python {

const DeviceMemory kDeviceMemory = {/*kDLCUDA*/ 2, "CUDA"};

}  // namespace treespec::python
