// SPDX-License-Identifier: Apache-2.0
// A CUDA stream with its memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "engine.h"

namespace treespec::tensorrt {

class CudaQueue final : public Queue {
 public:
  explicit CudaQueue(int device);
  ~CudaQueue() override;
  CudaQueue(const CudaQueue&) = delete;
  CudaQueue& operator=(const CudaQueue&) = delete;

  cudaStream_t stream() const { return stream_; }

  void* allocate(int64_t bytes) override;
  void release(void* data) noexcept override;
  void clear(void* data, int64_t bytes) override;
  void copy(void* to, int64_t to_stride, const void* from, int64_t from_stride, int64_t bytes,
            int64_t count) override;
  void commit(ArrayView<const KvBuffer> buffers, int64_t base,
              ArrayView<const int32_t> nodes) override;
  void* allocate_host(int64_t bytes) override;
  void release_host(void* data) noexcept override;
  void upload(void* device, const void* host, int64_t bytes) override;
  void download(void* host, const void* device, int64_t bytes) override;
  std::unique_ptr<Replay> capture(Context& context) override;
  void finish() override;

 private:
  /// Threads have a current device each.
  void use() const;

  int device_;
  cudaStream_t stream_ = nullptr;
  std::vector<char> staged_;   // arguments of a commit
  void* arguments_ = nullptr;  // the same on the device
  size_t arguments_bytes_ = 0;
};

}  // namespace treespec::tensorrt
