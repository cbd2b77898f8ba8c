// SPDX-License-Identifier: Apache-2.0
// Linked instead of cuda/ when there is no CUDA compiler.
#include "treespec/device.h"

namespace treespec {

bool cuda_built() { return false; }
int cuda_device_count() { return 0; }

}  // namespace treespec
