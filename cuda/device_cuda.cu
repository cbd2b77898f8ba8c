// SPDX-License-Identifier: Apache-2.0
#include <simt.cuh>

#include "treespec/device.h"

namespace treespec {

bool cuda_built() { return true; }
int cuda_device_count() { return simt::device_count(); }

}  // namespace treespec
