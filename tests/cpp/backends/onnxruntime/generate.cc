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

#include "treespec/batch_decoder.h"
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

DecoderOptions recipe(const Json& request) {
  DecoderOptions options;
  options.builder = request.value("builder", "opt_tree");
  options.builder_options = builder_options(request.value("builder_options", Json::object()));
  options.verifier = request.value("verifier", "auto");
  options.node_budget = request.value("node_budget", 8);
  return options;
}

GenerateOptions options(const Json& request) {
  GenerateOptions options;
  options.max_new_tokens = request.value("max_new_tokens", 64);
  options.sampling.temperature = request.value("temperature", 0.0);
  options.sampling.top_k = request.value("top_k", 0);
  options.sampling.top_p = request.value("top_p", 1.0);
  options.seed = request.value("seed", uint64_t{0});
  return options;
}

Json answer(const GenerateResult& result) {
  return {{"token_ids", result.token_ids},
          {"rounds", result.stats.rounds},
          {"drafted_nodes", result.stats.drafted_nodes}};
}

/// "prompt": one text. "prompts", "batch": a list of them, so many at a time.
Json answer(const Json& request) {
  const std::string folder = request.at("target");
  const Json& drafter = request.at("drafter");
  if (request.contains("prompt")) {
    const SpeculativeDecoder decoder(target(folder), draft(drafter, folder), recipe(request));
    const auto prompt = request.at("prompt").get<std::vector<int32_t>>();
    return answer(decoder.generate(prompt, options(request)));
  }
  BatchOptions batch;
  batch.size = request.at("batch");
  if (drafter == "ngram") batch.make_draft = [] { return std::make_unique<NgramDraft>(); };
  const bool exported = !drafter.is_null() && drafter != "ngram";
  BatchDecoder decoder(model(folder), exported ? model(drafter) : nullptr, recipe(request), batch);
  Json answers = Json::array();
  for (const GenerateResult& result :
       decoder.generate_all(request.at("prompts"), {options(request)})) {
    answers.push_back(answer(result));
  }
  return answers;
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
