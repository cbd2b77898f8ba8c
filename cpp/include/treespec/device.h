// SPDX-License-Identifier: Apache-2.0
// What the linked backend can reach. The linker chooses it: cuda/ or cpp/src/no_cuda/.
#pragma once

namespace treespec {

/// Whether CUDA code was linked. Without it every CUDA entry throws Unsupported.
bool cuda_built();
/// GPUs the driver offers; 0 without a driver, a GPU or CUDA code.
int cuda_device_count();

}  // namespace treespec
