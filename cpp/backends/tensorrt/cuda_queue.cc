// SPDX-License-Identifier: Apache-2.0
#include "cuda_queue.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "cuda_check.h"
#include "treespec/device/kv_commit.h"
#include "treespec/error.h"

namespace treespec::tensorrt {
namespace {

class CudaReplay final : public Replay {
 public:
  CudaReplay(cudaGraphExec_t graph, cudaStream_t stream) : graph_(graph), stream_(stream) {}
  ~CudaReplay() override { cudaGraphExecDestroy(graph_); }
  CudaReplay(const CudaReplay&) = delete;
  CudaReplay& operator=(const CudaReplay&) = delete;
  void enqueue() override { TREESPEC_CUDA_CALL(cudaGraphLaunch, graph_, stream_); }

 private:
  cudaGraphExec_t graph_;
  cudaStream_t stream_;
};

/// What a commit reads on the device, behind one another: table of buffers, nodes, three numbers.
struct CommitLayout {
  CommitLayout(size_t num_buffers, size_t num_nodes)
      : nodes(num_buffers * sizeof(device::KvBuffer)),
        num_accepted(nodes + num_nodes * sizeof(int32_t)),
        prefix_length(num_accepted + sizeof(int32_t)),
        status(prefix_length + sizeof(int32_t)),
        bytes(status + sizeof(uint32_t)) {}
  size_t nodes, num_accepted, prefix_length, status, bytes;
};

}  // namespace

CudaQueue::CudaQueue(int device) : device_(device) {
  use();
  // Without the implicit waits that the default stream has.
  TREESPEC_CUDA_CALL(cudaStreamCreateWithFlags, &stream_, cudaStreamNonBlocking);
}

CudaQueue::~CudaQueue() {
  cudaSetDevice(device_);
  cudaStreamSynchronize(stream_);
  cudaFree(arguments_);
  cudaStreamDestroy(stream_);
}

void CudaQueue::use() const { TREESPEC_CUDA_CALL(cudaSetDevice, device_); }

void* CudaQueue::allocate(int64_t bytes) {
  use();
  void* data = nullptr;
  TREESPEC_CUDA_CALL(cudaMalloc, &data, static_cast<size_t>(bytes));
  try {
    clear(data, bytes);
  } catch (...) {
    release(data);
    throw;
  }
  return data;
}

void CudaQueue::release(void* data) noexcept {
  cudaSetDevice(device_);
  cudaFree(data);  // waits for what still reads it
}

void CudaQueue::clear(void* data, int64_t bytes) {
  use();
  TREESPEC_CUDA_CALL(cudaMemsetAsync, data, 0, static_cast<size_t>(bytes), stream_);
}

void CudaQueue::copy(void* to, int64_t to_stride, const void* from, int64_t from_stride,
                     int64_t bytes, int64_t count) {
  if (bytes == 0 || count == 0) return;
  use();
  if (count == 1) to_stride = from_stride = bytes;  // a stride nobody reads may be any number
  TREESPEC_CUDA_CALL(cudaMemcpy2DAsync, to, static_cast<size_t>(to_stride), from,
                     static_cast<size_t>(from_stride), static_cast<size_t>(bytes),
                     static_cast<size_t>(count), cudaMemcpyDeviceToDevice, stream_);
}

void CudaQueue::commit(ArrayView<const KvBuffer> buffers, int64_t base,
                       ArrayView<const int32_t> nodes) {
  const int64_t count = nodes.size();
  if (count == 0 || buffers.empty()) return;
  for (int64_t d = 0; d < count; ++d) {
    const bool ascends = nodes[d] >= (d == 0 ? 0 : nodes[d - 1] + 1);
    TREESPEC_CHECK(ascends, "commit_kv: nodes must ascend from 0 or more, got ", nodes[d],
                   " at place ", d);
  }
  const int64_t end = base + nodes[count - 1] + 1;
  TREESPEC_CHECK(base >= 0 && end <= buffers[0].num_rows, "commit_kv: rows must be below ",
                 buffers[0].num_rows, ", got ", end - 1);
  if (nodes[count - 1] == count - 1) return;  // every row is in its place

  const CommitLayout layout(static_cast<size_t>(buffers.size()), static_cast<size_t>(count));
  staged_.resize(layout.bytes);
  device::KvCache cache;
  for (int64_t i = 0; i < buffers.size(); ++i) {
    const KvBuffer& one = buffers[i];
    const device::KvBuffer entry{one.data,     0, one.outer, one.outer_stride, one.row_stride,
                                 one.row_bytes};
    std::memcpy(staged_.data() + static_cast<size_t>(i) * sizeof entry, &entry, sizeof entry);
    cache.max_outer = std::max(cache.max_outer, one.outer);
    cache.max_row_bytes = std::max(cache.max_row_bytes, one.row_bytes);
  }
  std::memcpy(staged_.data() + layout.nodes, nodes.data(),
              static_cast<size_t>(count) * sizeof(int32_t));
  const int32_t numbers[] = {static_cast<int32_t>(count - 1), static_cast<int32_t>(base), 0};
  std::memcpy(staged_.data() + layout.num_accepted, numbers, sizeof numbers);

  use();
  if (arguments_bytes_ < layout.bytes) {
    arguments_bytes_ = 0;
    TREESPEC_CUDA_CALL(cudaFree, std::exchange(arguments_, nullptr));
    TREESPEC_CUDA_CALL(cudaMalloc, &arguments_, layout.bytes);
    arguments_bytes_ = layout.bytes;
  }
  // From memory that is not pinned: it has been read when the call returns.
  upload(arguments_, staged_.data(), static_cast<int64_t>(layout.bytes));
  char* const arguments = static_cast<char*>(arguments_);
  cache.buffers = reinterpret_cast<const device::KvBuffer*>(arguments);
  cache.num_buffers = static_cast<int32_t>(buffers.size());
  cache.page_size = static_cast<int32_t>(buffers[0].num_rows);
  cache.num_pages = 1;
  device::AcceptedPaths paths;
  paths.batch = 1;
  paths.max_depth = static_cast<int32_t>(count - 1);
  paths.nodes = reinterpret_cast<const int32_t*>(arguments + layout.nodes);
  paths.num_accepted = reinterpret_cast<const int32_t*>(arguments + layout.num_accepted);
  device::commit_kv({stream_}, cache, paths,
                    reinterpret_cast<const int32_t*>(arguments + layout.prefix_length),
                    reinterpret_cast<uint32_t*>(arguments + layout.status));
}

void* CudaQueue::allocate_host(int64_t bytes) {
  use();
  void* data = nullptr;
  TREESPEC_CUDA_CALL(cudaMallocHost, &data, static_cast<size_t>(bytes));
  return data;
}

void CudaQueue::release_host(void* data) noexcept {
  cudaSetDevice(device_);
  cudaFreeHost(data);
}

void CudaQueue::upload(void* device, const void* host, int64_t bytes) {
  use();
  TREESPEC_CUDA_CALL(cudaMemcpyAsync, device, host, static_cast<size_t>(bytes),
                     cudaMemcpyHostToDevice, stream_);
}

void CudaQueue::download(void* host, const void* device, int64_t bytes) {
  use();
  TREESPEC_CUDA_CALL(cudaMemcpyAsync, host, device, static_cast<size_t>(bytes),
                     cudaMemcpyDeviceToHost, stream_);
}

std::unique_ptr<Replay> CudaQueue::capture(Context& context) {
  use();
  // Other threads may go on allocating.
  TREESPEC_CUDA_CALL(cudaStreamBeginCapture, stream_, cudaStreamCaptureModeThreadLocal);
  cudaGraph_t graph = nullptr;
  try {
    context.enqueue();
  } catch (...) {
    cudaStreamEndCapture(stream_, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  TREESPEC_CUDA_CALL(cudaStreamEndCapture, stream_, &graph);
  cudaGraphExec_t executable = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check_cuda(error, "cudaGraphInstantiate");
  return std::make_unique<CudaReplay>(executable, stream_);
}

void CudaQueue::finish() {
  use();
  TREESPEC_CUDA_CALL(cudaStreamSynchronize, stream_);
}

}  // namespace treespec::tensorrt
