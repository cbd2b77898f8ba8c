// SPDX-License-Identifier: Apache-2.0
// ONNX Runtime behind GraphRunner: one session per model, one I/O binding per owner.
#include <onnxruntime_cxx_api.h>
#include <onnxruntime_session_options_config_keys.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "host_memory.h"
#include "treespec/error.h"
#include "treespec/graph_runner.h"
#include "treespec/onnxruntime.h"

namespace treespec {
namespace {

ONNXTensorElementDataType onnx_type(ElementType type) {
  switch (type) {
    case ElementType::kFloat32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case ElementType::kFloat16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case ElementType::kBFloat16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    case ElementType::kInt64:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    case ElementType::kBool:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
  }
  throw std::logic_error("onnx_type: unknown element type");
}

// From 1.25 on there is TensorScatter, by which graphs write into their caches.
constexpr uint32_t kFirstVersion = 25;

/// The C++ wrapper calls through a table of functions, which has the number of the library's
/// version; an older one lacks it, or what the graphs need.
void check_library() {
  constexpr uint32_t kNeeded = std::max<uint32_t>(ORT_API_VERSION, kFirstVersion);
  const OrtApiBase* base = OrtGetApiBase();
  if (base->GetApi(kNeeded) != nullptr) return;
  throw Unsupported(detail::message("OrtModel: the ONNX Runtime library must be at least 1.",
                                    kNeeded, ", got ", base->GetVersionString()));
}

/// Threads and logging of the process, shared by all sessions.
Ort::Env& environment() {
  static Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "treespec");
  return env;
}

/// What ONNX Runtime says of a failure, with the model it is about.
template <class Work>
void guarded(const std::string& folder, Work work) {
  try {
    work();
  } catch (const Ort::Exception& error) {
    throw std::runtime_error(
        detail::message("OrtModel: ONNX Runtime failed on '", folder, "': ", error.what()));
  }
}

class OrtRunner final : public GraphRunner {
 public:
  /// The session is shared with the model, which outlives its runners in the hands of their owners.
  OrtRunner(Ort::Session& session, const std::string& folder)
      : session_(session),
        folder_(folder),
        host_(Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault)),
        binding_(session) {}

  CacheMemory& memory() override { return memory_; }

  void* input(const char* name, ElementType type, const Shape& shape) override {
    Input& input = inputs_.try_emplace(name, Input{{}, type, shape}).first->second;
    input.shape = shape;
    return resized(input.memory, type, shape);
  }

  void want(const char* name, ElementType type, const Shape& shape) override {
    bind_output(name, resized(outputs_[name], type, shape), type, shape);
  }

  void bind_input(const char* name, void* data, ElementType type, const Shape& shape) override {
    guarded(folder_, [&] { binding_.BindInput(name, value(data, type, shape)); });
  }

  void bind_output(const char* name, void* data, ElementType type, const Shape& shape) override {
    guarded(folder_, [&] { binding_.BindOutput(name, value(data, type, shape)); });
  }

  void run() override {
    // Now that they are filled: binding copies to where the graph wants them.
    for (auto& [name, input] : inputs_) {
      bind_input(name.c_str(), input.memory.data(), input.type, input.shape);
    }
    guarded(folder_, [&] { session_.Run(Ort::RunOptions{nullptr}, binding_); });
  }

  const void* output(const char* name) const override { return outputs_.at(name).data(); }

 private:
  using Memory = std::vector<std::max_align_t>;
  struct Input {
    Memory memory;
    ElementType type;
    Shape shape;
  };

  static void* resized(Memory& memory, ElementType type, const Shape& shape) {
    constexpr auto kUnit = static_cast<int64_t>(sizeof(std::max_align_t));
    const auto units =
        static_cast<size_t>((shape.num_elements() * size_of(type) + kUnit - 1) / kUnit);
    if (memory.size() < units) memory.resize(units);
    return memory.data();
  }

  Ort::Value value(void* data, ElementType type, const Shape& shape) {
    const auto bytes = static_cast<size_t>(shape.num_elements() * size_of(type));
    return Ort::Value::CreateTensor(host_, data, bytes, shape.size, static_cast<size_t>(shape.rank),
                                    onnx_type(type));
  }

  Ort::Session& session_;
  const std::string& folder_;
  exported::HostMemory memory_;
  Ort::MemoryInfo host_;
  std::map<std::string, Input, std::less<>> inputs_;
  std::map<std::string, Memory, std::less<>> outputs_;
  Ort::IoBinding binding_;  // after the memory it refers to
};

}  // namespace

struct OrtModel::Session {
  Ort::Session session;
};

std::shared_ptr<const OrtModel> OrtModel::load(const std::string& folder,
                                               const OrtOptions& options) {
  TREESPEC_CHECK(options.threads >= 0, "OrtModel::load: threads must be at least 0, got ",
                 options.threads);
  check_library();
  ExportManifest manifest = ExportManifest::load(folder);
  if (manifest.dtype == DType::kBFloat16) {
    throw Unsupported("OrtModel::load: '" + folder +
                      "' must be exported as float32 or float16; bfloat16 does not run on a CPU");
  }
  return std::shared_ptr<const OrtModel>(new OrtModel(std::move(manifest), options));
}

OrtModel::OrtModel(ExportManifest manifest, const OrtOptions& options)
    : ExportedModel(std::move(manifest)) {
  const auto path = std::filesystem::path(this->manifest().folder) / this->manifest().graph;
  try {
    Ort::SessionOptions settings;
    settings.SetIntraOpNumThreads(options.threads);
    // It keeps a plan of memory for every set of sizes that it has seen, and ours go on changing.
    settings.DisableMemPattern();
    settings.AddConfigEntry(kOrtSessionOptionsConfigAllowIntraOpSpinning,
                            options.spinning ? "1" : "0");
    session_ = std::make_unique<Session>(Session{{environment(), path.c_str(), settings}});
  } catch (const Ort::Exception& error) {
    throw std::runtime_error(detail::message("OrtModel::load: ONNX Runtime must be able to load ",
                                             path.string(), ", and says: ", error.what()));
  }
}

OrtModel::~OrtModel() = default;

std::unique_ptr<GraphRunner> OrtModel::make_runner() const {
  return std::make_unique<OrtRunner>(session_->session, manifest().folder);
}

}  // namespace treespec
