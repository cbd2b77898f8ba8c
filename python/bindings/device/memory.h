// SPDX-License-Identifier: Apache-2.0
// The memory that the linked device ops reach. Each module defines it for itself: CUDA memory in
// the one that is installed, host memory in the one the tests run the emulation with.
#pragma once

#include <cstdint>

namespace treespec::python {

struct DeviceMemory {
  int32_t dlpack_type;  ///< DLDeviceType of the arrays
  const char* name;     ///< for messages
};

extern const DeviceMemory kDeviceMemory;

}  // namespace treespec::python
