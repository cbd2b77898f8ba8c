// SPDX-License-Identifier: Apache-2.0
// Generates as tests/test_cpp_onnxruntime.py asks: a JSON list of requests on standard input, a
// list of answers on standard output. Objects are shared where their settings are equal, as in a
// service.
#include <cstdint>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "treespec/drafts.h"
#include "treespec/onnxruntime.h"

namespace {

using namespace treespec;  // NOLINT
using Json = nlohmann::json;

std::shared_ptr<const OrtModel> model(const std::string& folder) {
  static std::map<std::string, std::shared_ptr<const OrtModel>> models;
  auto& one = models[folder];
  if (one == nullptr) one = OrtModel::load(folder, {1});
  return one;
}

OrtTarget& target(const std::string& folder) {
  static std::map<std::string, std::unique_ptr<OrtTarget>> targets;
  auto& one = targets[folder];
  if (one == nullptr) one = std::make_unique<OrtTarget>(model(folder));
  return *one;
}

DraftModel* draft(const Json& name, const std::string& target_folder) {
  static std::map<std::string, std::unique_ptr<DraftModel>> drafts;
  if (name.is_null()) return nullptr;
  auto& one = drafts[name];
  if (one != nullptr) return one.get();
  if (name == "ngram") {
    one = std::make_unique<NgramDraft>();
  } else {
    one = std::make_unique<OrtDraft>(model(name), model(target_folder)->manifest());
  }
  return one.get();
}

BuilderOptions builder_options(const Json& values) {
  BuilderOptions options;
  for (const auto& [name, value] : values.items()) {
    if (value.is_array()) {
      options[name] = value.get<std::vector<int64_t>>();
    } else if (value.is_string()) {
      options[name] = value.get<std::string>();
    } else if (value.is_number_integer()) {
      options[name] = value.get<int64_t>();
    } else {
      options[name] = value.get<double>();
    }
  }
  return options;
}

Json answer(const Json& request) {
  DecoderOptions recipe;
  recipe.builder = request.value("builder", "opt_tree");
  recipe.builder_options = builder_options(request.value("builder_options", Json::object()));
  recipe.verifier = request.value("verifier", "auto");
  recipe.node_budget = request.value("node_budget", 8);
  GenerateOptions options;
  options.max_new_tokens = request.value("max_new_tokens", 64);
  options.sampling.temperature = request.value("temperature", 0.0);
  options.sampling.top_k = request.value("top_k", 0);
  options.sampling.top_p = request.value("top_p", 1.0);
  options.seed = request.value("seed", uint64_t{0});

  const std::string folder = request.at("target");
  const SpeculativeDecoder decoder(target(folder), draft(request.at("drafter"), folder), recipe);
  const auto prompt = request.at("prompt").get<std::vector<int32_t>>();
  const GenerateResult result = decoder.generate(prompt, options);
  return {{"token_ids", result.token_ids},
          {"rounds", result.stats.rounds},
          {"drafted_nodes", result.stats.drafted_nodes}};
}

}  // namespace

int main() try {
  Json answers = Json::array();
  for (const Json& request : Json::parse(std::cin)) answers.push_back(answer(request));
  std::cout << answers << '\n';
  return 0;
} catch (const std::exception& error) {
  std::cerr << "ort_generate: " << error.what() << '\n';
  return 1;
}
