// SPDX-License-Identifier: Apache-2.0
// What the runner needs of TensorRT and of CUDA, so that its own logic runs without either.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "treespec/graph_runner.h"

namespace treespec::tensorrt {

/// Of addresses that TensorRT is given, in bytes.
constexpr int64_t kAlignment = 256;

/// Where a tensor of an engine is, in device memory.
struct Binding {
  std::string name;
  void* data;
  Shape shape;
};

/// An execution context with a profile, shapes and addresses; it keeps them, so that a graph
/// captured from it stays valid.
class Context {
 public:
  virtual ~Context() = default;
  /// Queues a run. Throws std::runtime_error when TensorRT refuses.
  virtual void enqueue() = 0;
};

/// A recorded run.
class Replay {
 public:
  virtual ~Replay() = default;
  virtual void enqueue() = 0;
};

/// A stream of its own, never the default one, and memory in its order. All calls but `finish` and
/// those that allocate return at once.
class Queue : public CacheMemory {
 public:
  /// Host memory that the device copies from and to without a detour.
  virtual void* allocate_host(int64_t bytes) = 0;
  virtual void release_host(void* data) noexcept = 0;
  virtual void upload(void* device, const void* host, int64_t bytes) = 0;
  virtual void download(void* host, const void* device, int64_t bytes) = 0;
  /// Records what the context queues, without running it. Throws std::runtime_error if it cannot.
  virtual std::unique_ptr<Replay> capture(Context& context) = 0;
  /// Waits for all that is queued.
  virtual void finish() = 0;
};

/// A deserialised engine. Several threads may make contexts.
class Engine {
 public:
  virtual ~Engine() = default;
  /// Memory that a context needs beside its tensors; contexts that run one after another may share
  /// it.
  virtual int64_t scratch_bytes() const = 0;
  /// The input in whose memory an output is written, or an empty name.
  virtual std::string alias_of(const std::string& output) const = 0;
  /// Says something to the user.
  virtual void warn(const std::string& text) = 0;
  /// A context on the stream of `queue`. Throws std::runtime_error when TensorRT refuses a shape or
  /// address.
  virtual std::unique_ptr<Context> make_context(int profile, const std::vector<Binding>& bindings,
                                                void* scratch, Queue& queue) = 0;
};

}  // namespace treespec::tensorrt
