// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>

#include "treespec/device.h"

namespace treespec {

bool cuda_built() { return true; }

int cuda_device_count() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  (void)cudaGetLastError();  // a machine without a driver is no error of the caller's
  return status == cudaSuccess ? count : 0;
}

}  // namespace treespec
