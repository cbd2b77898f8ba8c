// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>

#include "check.h"
#include "device/device_memory.h"
#include "treespec/device.h"

namespace treespec::test {
namespace {

void require(cudaError_t status) {
  if (status != cudaSuccess) fail(__FILE__, __LINE__, cudaGetErrorString(status));
}

}  // namespace

bool has_device() { return cuda_device_count() > 0; }
int num_orders() { return 1; }
void set_order(int /*order*/) {}
int num_cases(int most) { return most; }

void* device_allocate(size_t bytes) {
  void* memory = nullptr;
  require(cudaMalloc(&memory, bytes > 0 ? bytes : 1));
  return memory;
}
void device_free(void* memory) { require(cudaFree(memory)); }
void copy_to_device(void* to, const void* from, size_t bytes) {
  require(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
}
void copy_to_host(void* to, const void* from, size_t bytes) {
  require(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
}

}  // namespace treespec::test
