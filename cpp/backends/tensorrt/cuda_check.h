// SPDX-License-Identifier: Apache-2.0
// Errors of the CUDA runtime as exceptions.
#pragma once

#include <cuda_runtime_api.h>

#include "treespec/error.h"

namespace treespec::tensorrt {

inline void check_cuda(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears it
  throw CudaError(
      detail::message(call, " failed: ", cudaGetErrorName(error), ", ", cudaGetErrorString(error)));
}

}  // namespace treespec::tensorrt

#define TREESPEC_CUDA_CALL(name, ...) ::treespec::tensorrt::check_cuda(name(__VA_ARGS__), #name)
