// SPDX-License-Identifier: Apache-2.0
// TensorRT and the CUDA runtime behind Engine: the only file that includes TensorRT's headers.
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <fstream>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda_check.h"
#include "cuda_queue.h"
#include "engine.h"
#include "engine_file.h"
#include "engine_runner.h"
#include "treespec/error.h"
#include "treespec/tensorrt.h"

namespace treespec {
namespace tensorrt {
namespace {

static_assert(NV_TENSORRT_MAJOR * 100 + NV_TENSORRT_MINOR >= 1015,
              "treespec needs TensorRT 10.15 or later, which updates caches in place");

template <class... Parts>
[[noreturn]] void fail(Parts&&... parts) {
  throw std::runtime_error(detail::message("TensorRtModel: ", std::forward<Parts>(parts)...));
}

/// Prints warnings, remembers errors for the messages of exceptions.
class Log final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* text) noexcept override {
    if (severity > Severity::kWARNING) return;
    try {
      const std::lock_guard<std::mutex> held(mutex_);
      if (severity <= Severity::kERROR) {
        errors_ += errors_.empty() ? "" : "; ";
        errors_ += text;
      }
      std::fprintf(stderr, "treespec: TensorRT: %s\n", text);
    } catch (...) {  // out of memory: the exception has less to say then
    }
  }
  /// The errors since the last call.
  std::string errors() {
    const std::lock_guard<std::mutex> held(mutex_);
    std::string text = std::exchange(errors_, {});
    return text.empty() ? "no reason given" : text;
  }

 private:
  std::mutex mutex_;
  std::string errors_;
};

nvinfer1::Dims dims_of(const Shape& shape) {
  nvinfer1::Dims dims{};
  dims.nbDims = shape.rank;
  for (int axis = 0; axis < shape.rank; ++axis) dims.d[axis] = shape.size[axis];
  return dims;
}

class EngineContext final : public Context {
 public:
  EngineContext(std::unique_ptr<nvinfer1::IExecutionContext> context, cudaStream_t stream, Log& log)
      : context_(std::move(context)), stream_(stream), log_(log) {}
  void enqueue() override {
    if (!context_->enqueueV3(stream_)) fail("TensorRT refuses the run: ", log_.errors());
  }

 private:
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  cudaStream_t stream_;
  Log& log_;
};

class PlanEngine final : public Engine {
 public:
  PlanEngine(const std::string& path, const std::vector<char>& plan)
      : runtime_(nvinfer1::createInferRuntime(log_)) {
    if (!runtime_) fail("TensorRT makes no runtime: ", log_.errors());
    engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
    if (!engine_) fail("TensorRT refuses the engine ", path, ": ", log_.errors());
  }

  int64_t scratch_bytes() const override { return engine_->getDeviceMemorySizeV2(); }

  std::string alias_of(const std::string& output) const override {
    const char* name = engine_->getAliasedInputTensor(output.c_str());
    return name != nullptr ? name : "";
  }

  void warn(const std::string& text) override {
    log_.log(nvinfer1::ILogger::Severity::kWARNING, text.c_str());
  }

  std::unique_ptr<Context> make_context(int profile, const std::vector<Binding>& bindings,
                                        void* scratch, Queue& queue) override {
    const cudaStream_t stream = static_cast<CudaQueue&>(queue).stream();
    const std::lock_guard<std::mutex> held(mutex_);
    std::unique_ptr<nvinfer1::IExecutionContext> context(engine_->createExecutionContext(
        nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
    if (!context) fail("TensorRT makes no execution context: ", log_.errors());
    context->setDeviceMemoryV2(scratch, scratch_bytes());
    require(context->setOptimizationProfileAsync(profile, stream), "profile", profile);
    for (const Binding& one : bindings) {
      const char* name = one.name.c_str();
      if (engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT) {
        require(context->setInputShape(name, dims_of(one.shape)), "shape of", name);
      }
      require(context->setTensorAddress(name, one.data), "address of", name);
    }
    const char* missing = nullptr;
    const int32_t num_missing = context->inferShapes(1, &missing);
    require(num_missing == 0, "shapes, lacking", missing != nullptr ? missing : "some");
    for (const Binding& one : bindings) check_shape(*context, one);
    return std::make_unique<EngineContext>(std::move(context), stream, log_);
  }

 private:
  template <class What>
  void require(bool accepted, const char* kind, const What& what) {
    if (!accepted) fail("TensorRT refuses the ", kind, ' ', what, ": ", log_.errors());
  }

  void check_shape(const nvinfer1::IExecutionContext& context, const Binding& binding) const {
    const nvinfer1::Dims found = context.getTensorShape(binding.name.c_str());
    const nvinfer1::Dims wanted = dims_of(binding.shape);
    bool equal = found.nbDims == wanted.nbDims;
    for (int axis = 0; equal && axis < found.nbDims; ++axis) {
      equal = found.d[axis] == wanted.d[axis];
    }
    if (!equal) fail("the shape of ", binding.name, " is not what the engine makes of its inputs");
  }

  Log log_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::mutex mutex_;
};

Runtime this_runtime(int device) {
  cudaDeviceProp properties{};
  TREESPEC_CUDA_CALL(cudaGetDeviceProperties, &properties, device);
  const std::string version =
      detail::message(getInferLibMajorVersion(), '.', getInferLibMinorVersion(), '.',
                      getInferLibPatchVersion(), '.', getInferLibBuildVersion());
  return {version, detail::message(properties.major, '.', properties.minor), properties.name};
}

std::vector<char> read_plan(const EngineFile& file) {
  std::vector<char> plan(static_cast<size_t>(file.bytes));
  std::ifstream input(file.plan, std::ios::binary);
  if (!input.read(plan.data(), static_cast<std::streamsize>(plan.size()))) {
    fail(file.plan, " must be readable");
  }
  return plan;
}

}  // namespace
}  // namespace tensorrt

struct TensorRtModel::Loaded {
  tensorrt::EngineFile file;
  std::shared_ptr<tensorrt::Engine> engine;
  TensorRtOptions options;
};

std::shared_ptr<const TensorRtModel> TensorRtModel::load(const std::string& folder,
                                                         const TensorRtOptions& options) {
  int num_devices = 0;
  tensorrt::check_cuda(cudaGetDeviceCount(&num_devices), "cudaGetDeviceCount");
  TREESPEC_CHECK(options.device >= 0 && options.device < num_devices,
                 "TensorRtModel::load: device must be in [0, ", num_devices, "), got ",
                 options.device);
  ExportManifest manifest = ExportManifest::load(folder);
  TREESPEC_CUDA_CALL(cudaSetDevice, options.device);
  auto file = tensorrt::find_engine(manifest, tensorrt::this_runtime(options.device), options.plan);
  auto engine = std::make_shared<tensorrt::PlanEngine>(file.plan, tensorrt::read_plan(file));
  manifest.max_context = file.max_context;
  manifest.max_nodes = file.max_nodes;
  auto loaded = std::make_unique<Loaded>(Loaded{std::move(file), std::move(engine), options});
  return std::shared_ptr<const TensorRtModel>(
      new TensorRtModel(std::move(manifest), std::move(loaded)));
}

TensorRtModel::TensorRtModel(ExportManifest manifest, std::unique_ptr<Loaded> loaded)
    : ExportedModel(std::move(manifest)), loaded_(std::move(loaded)) {}

TensorRtModel::~TensorRtModel() = default;

std::unique_ptr<GraphRunner> TensorRtModel::make_runner() const {
  auto queue = std::make_unique<tensorrt::CudaQueue>(loaded_->options.device);
  return std::make_unique<tensorrt::EngineRunner>(manifest(), loaded_->file, loaded_->engine,
                                                  std::move(queue), loaded_->options.cuda_graphs);
}

}  // namespace treespec
