// SPDX-License-Identifier: Apache-2.0
#include "tokenizer.h"

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>
#include <openvino/core/attribute_visitor.hpp>
#include <openvino/core/extension.hpp>
#include <openvino/core/model.hpp>
#include <openvino/runtime/core.hpp>
#include <openvino/runtime/properties.hpp>
#include <stdexcept>

// What every library of OpenVINO operations offers; ours is linked, not loaded by path.
extern "C" void create_extensions(std::vector<ov::Extension::Ptr>& extensions);

namespace service {
namespace {

/// JSON's own writer replaces ill-formed UTF-8 by the rule that Hugging Face's decoders follow.
std::string repaired(const std::string& bytes) {
  using nlohmann::json;
  const auto replace = json::error_handler_t::replace;
  return json::parse(json(bytes).dump(-1, ' ', false, replace)).get<std::string>();
}

/// Turns the memory of words off: it counts them, and clients choose how long they are.
class WithoutCache final : public ov::AttributeVisitor {
 public:
  void on_adapter(const std::string&, ov::ValueAccessor<void>&) override {}
  void on_adapter(const std::string& name, ov::ValueAccessor<int64_t>& value) override {
    if (name == "cache_capacity") value.set(0);
  }
};

std::shared_ptr<ov::Model> read_graph(ov::Core& core, const std::filesystem::path& path) {
  auto graph = core.read_model(path.string());
  WithoutCache visitor;
  for (const auto& node : graph->get_ops()) node->visit_attributes(visitor);
  return graph;
}

/// One graph, with one place to run it.
class Graph {
 public:
  Graph(ov::Core& core, const std::filesystem::path& path)
      : run_(core.compile_model(read_graph(core, path), "CPU", ov::inference_num_threads(1),
                                ov::num_streams(1))
                 .create_infer_request()) {}

  /// What `read` makes of the first output.
  template <class Read>
  auto run(const ov::Tensor& input, Read read) {
    const std::lock_guard<std::mutex> lock(mutex_);
    run_.set_input_tensor(0, input);
    run_.infer();
    return read(run_.get_output_tensor(0));
  }

 private:
  std::mutex mutex_;
  ov::InferRequest run_;
};

ov::Core make_core() {
  ov::Core core;
  std::vector<ov::Extension::Ptr> operations;
  create_extensions(operations);
  core.add_extension(operations);
  return core;
}

std::filesystem::path existing(const std::string& folder, const char* name) {
  const auto path = std::filesystem::path(folder) / name;
  if (std::filesystem::exists(path)) return path;
  throw std::runtime_error("Tokenizer: " + path.string() +
                           " must exist; make it with: convert_tokenizer " + folder + " -o " +
                           folder + " --with-detokenizer --utf8_replace_mode disable");
}

}  // namespace

struct Tokenizer::Graphs {
  explicit Graphs(const std::string& folder)
      : core(make_core()),
        encoder(core, existing(folder, "openvino_tokenizer.xml")),
        decoder(core, existing(folder, "openvino_detokenizer.xml")) {}

  ov::Core core;
  Graph encoder, decoder;
};

Tokenizer::Tokenizer(const std::string& folder) : graphs_(std::make_unique<Graphs>(folder)) {}
Tokenizer::~Tokenizer() = default;

std::vector<int32_t> Tokenizer::encode(const std::string& text) const {
  ov::Tensor input(ov::element::string, {1});
  *input.data<std::string>() = text;
  return graphs_->encoder.run(input, [](const ov::Tensor& output) {
    const auto* ids = output.data<int64_t>();
    return std::vector<int32_t>(ids, ids + output.get_size());
  });
}

std::string Tokenizer::decode(const int32_t* token_ids, size_t count) const {
  ov::Tensor input(ov::element::i64, {1, count});
  std::copy_n(token_ids, count, input.data<int64_t>());
  return repaired(graphs_->decoder.run(
      input, [](const ov::Tensor& output) { return *output.data<std::string>(); }));
}

}  // namespace service
