// SPDX-License-Identifier: Apache-2.0
// A GraphRunner on an engine: which profile and context a run takes, where its tensors are, and
// when it is replayed as a CUDA graph.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine.h"
#include "engine_file.h"
#include "kv_cache.h"
#include "treespec/exported_model.h"
#include "treespec/graph_runner.h"

namespace treespec::tensorrt {

class EngineRunner final : public GraphRunner {
 public:
  /// `manifest` and `file` are borrowed. Throws std::runtime_error for an engine that does not
  /// write its caches in place.
  EngineRunner(const ExportManifest& manifest, const EngineFile& file,
               std::shared_ptr<Engine> engine, std::unique_ptr<Queue> queue, bool cuda_graphs);
  ~EngineRunner() override;

  GraphLimits limits() const override;
  int64_t padded_rows(int64_t rows) const override;
  CacheMemory& memory() override { return *queue_; }
  void* input(const char* name, ElementType type, const Shape& shape) override;
  void want(const char* name, ElementType type, const Shape& shape) override;
  void bind_input(const char* name, void* data, ElementType type, const Shape& shape) override;
  void bind_output(const char* name, void* data, ElementType type, const Shape& shape) override;
  void run() override;
  const void* output(const char* name) const override;

 private:
  struct HostRelease {
    Queue* queue;
    void operator()(void* data) const { queue->release_host(data); }
  };
  /// A tensor on the host and on the device; both grow.
  struct Tensor {
    std::unique_ptr<void, HostRelease> host;
    exported::CacheBlock device;
    int64_t bytes = 0;  // of a run
    Shape shape{};
  };
  struct Prepared {
    int profile;
    std::vector<Binding> bindings;
    std::unique_ptr<Context> context;
    std::unique_ptr<Replay> replay;  // goes before the context it came from
    int64_t runs = 0;
  };
  using Tensors = std::map<std::string, Tensor, std::less<>>;

  Tensor& resized(Tensors& tensors, const char* name, ElementType type, const Shape& shape);
  std::map<std::string, int64_t> sizes() const;
  int choose(const std::map<std::string, int64_t>& sizes) const;
  void check_room(const std::map<std::string, int64_t>& sizes) const;
  std::vector<Binding> bindings();
  Prepared& prepare(int profile, std::vector<Binding> bindings);
  void enqueue(Prepared& prepared);

  const ExportManifest& manifest_;
  const EngineFile& file_;
  std::shared_ptr<Engine> engine_;
  std::unique_ptr<Queue> queue_;
  bool cuda_graphs_;
  std::vector<int64_t> row_sizes_;  // that the engine is tuned for, ascending
  exported::CacheBlock scratch_;    // of all contexts, since one runs at a time
  Tensors inputs_, outputs_;
  Tensors unwanted_;                                   // outputs that nobody reads
  std::map<std::string, Binding, std::less<>> bound_;  // caches
  std::list<Prepared> prepared_;                       // last used first
};

}  // namespace treespec::tensorrt
