// SPDX-License-Identifier: Apache-2.0
#include "api.h"

#include <charconv>
#include <functional>
#include <limits>
#include <map>
#include <random>
#include <utility>

#include "treespec/error.h"

namespace service {
namespace {

using nlohmann::json;

constexpr size_t kMaxStops = 4;        // OpenAI's
constexpr size_t kMaxStopBytes = 256;  // each is looked for after every token
constexpr size_t kMaxShown = 80;       // bytes of a wrong value in an error
constexpr int kMaxNesting = 8;         // JSON is written by recursion

std::string dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string shown(const json& value) {
  std::string text = dump(value);
  if (text.size() > kMaxShown) text = text.substr(0, kMaxShown) + "...";
  return text;
}

/// Below 2^53, which every client can read and send back.
uint64_t random_seed() {
  std::random_device device;
  return (uint64_t{device()} << 32 | device()) >> 11;
}

bool read_bool(const std::string& field, const json& value) {
  if (!value.is_boolean()) refuse(field, "be true or false", value);
  return value.get<bool>();
}

int32_t read_int(const std::string& field, const json& value, int32_t min) {
  const bool sound =
      value.is_number_integer() && value >= min && value <= std::numeric_limits<int32_t>::max();
  if (!sound) refuse(field, "be an integer in [" + std::to_string(min) + ", 2^31)", value);
  return value.get<int32_t>();
}

std::vector<int32_t> read_token_ids(const json& value, int32_t vocab_size) {
  const std::string rule =
      "be a text, or a list of token ids in [0, " + std::to_string(vocab_size) + "), not empty";
  if (value.empty()) refuse("prompt", rule, value);
  std::vector<int32_t> ids;
  for (const json& id : value) {
    if (!id.is_number_integer() || id < 0 || id >= vocab_size) refuse("prompt", rule, id);
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

std::vector<std::string> read_stop(const json& value) {
  const std::string rule = "be a string of 1 to " + std::to_string(kMaxStopBytes) +
                           " bytes, or a list of at most " + std::to_string(kMaxStops);
  const json list = value.is_array() ? value : json::array({value});
  if (list.size() > kMaxStops) refuse("stop", rule, value);
  std::vector<std::string> stop;
  for (const json& one : list) {
    if (!one.is_string()) refuse("stop", rule, one);
    stop.push_back(one.get<std::string>());
    if (stop.back().empty() || stop.back().size() > kMaxStopBytes) refuse("stop", rule, one);
  }
  return stop;
}

/// As OpenAI has it: an object from token ids to what is added to their logits.
std::vector<std::pair<int32_t, double>> read_logit_bias(const json& value, int32_t vocab_size) {
  constexpr double kMost = 100;
  if (!value.is_object()) refuse("logit_bias", "be an object", value);
  std::vector<std::pair<int32_t, double>> biases;
  for (const auto& [name, bias] : value.items()) {
    int32_t id = -1;
    std::from_chars(name.data(), name.data() + name.size(), id);
    if (id < 0 || id >= vocab_size || std::to_string(id) != name) {
      refuse("logit_bias", "name token ids in [0, " + std::to_string(vocab_size) + ")", name);
    }
    if (!bias.is_number() || bias < -kMost || bias > kMost) {
      refuse("logit_bias", "have numbers in [-100, 100]", bias);
    }
    biases.emplace_back(id, bias.get<double>());
  }
  return biases;
}

void read_stream_options(const json& value, CompletionRequest& request) {
  if (!value.is_object()) refuse("stream_options", "be an object", value);
  for (const auto& [name, option] : value.items()) {
    if (name != "include_usage") refuse("stream_options", "have include_usage alone", name);
    request.include_usage = read_bool("stream_options.include_usage", option);
  }
}

/// The core knows the ranges, and says them.
template <class Member, class Value>
void set_sampling(const std::string& field, CompletionRequest& request, Member member,
                  Value value) {
  request.sampling.*member = value;
  try {
    treespec::check_sampling(request.sampling);
  } catch (const treespec::InvalidArgument& error) {
    throw ApiError(400, "invalid_request_error", error.what(), field);
  }
}

using Reader = std::function<void(const std::string& field, const json& value,
                                  const ApiLimits& limits, CompletionRequest& request)>;

Reader number(double treespec::SamplingParams::* member) {
  return [member](const std::string& field, const json& value, const ApiLimits&,
                  CompletionRequest& request) {
    if (!value.is_number()) refuse(field, "be a number", value);
    set_sampling(field, request, member, value.get<double>());
  };
}

/// Narrower than what the core takes: no client may make a logit overflow.
Reader bounded(double treespec::SamplingParams::* member, double least, double most) {
  return [=, read = number(member)](const std::string& field, const json& value,
                                    const ApiLimits& limits, CompletionRequest& request) {
    if (value.is_number() && (value < least || value > most)) {
      refuse(field, "be in [" + shown(least) + ", " + shown(most) + "]", value);
    }
    read(field, value, limits, request);
  };
}

/// Every field there is. Those of OpenAI that are missing here would change the answer, and an
/// answer to another question is worse than none.
const std::map<std::string, Reader>& readers() {
  using Params = treespec::SamplingParams;
  static const std::map<std::string, Reader> table = {
      {"model",
       [](auto& field, auto& value, auto& limits, auto&) {
         if (!value.is_string()) refuse(field, "be a string", value);
         if (value == limits.model) return;
         throw ApiError(404, "not_found_error",
                        "model must be \"" + limits.model + "\", got " + shown(value), field);
       }},
      {"prompt",
       [](auto& field, auto& value, auto& limits, auto& request) {
         if (value.is_string()) {
           request.prompt = value.template get<std::string>();
         } else if (value.is_array()) {
           request.prompt = read_token_ids(value, limits.vocab_size);
         } else {
           refuse(field, "be a text or a list of token ids", value);
         }
       }},
      {"max_tokens", [](auto& field, auto& value, auto&,
                        auto& request) { request.max_tokens = read_int(field, value, 1); }},
      {"temperature", number(&Params::temperature)},
      {"top_p", number(&Params::top_p)},
      {"min_p", number(&Params::min_p)},
      {"presence_penalty", bounded(&Params::presence_penalty, -2, 2)},
      {"frequency_penalty", bounded(&Params::frequency_penalty, -2, 2)},
      {"repetition_penalty", bounded(&Params::repetition_penalty, 0.01, 100)},
      {"logit_bias",
       [](auto&, auto& value, auto& limits, auto& request) {
         request.sampling.logit_bias = read_logit_bias(value, limits.vocab_size);
       }},
      {"top_k",
       [](auto& field, auto& value, auto&, auto& request) {
         set_sampling(field, request, &Params::top_k, read_int(field, value, 0));
       }},
      {"seed",
       [](auto& field, auto& value, auto&, auto& request) {
         if (!value.is_number_unsigned()) refuse(field, "be an integer in [0, 2^64)", value);
         request.seed = value.template get<uint64_t>();
       }},
      {"stop", [](auto&, auto& value, auto&, auto& request) { request.stop = read_stop(value); }},
      {"ignore_eos", [](auto& field, auto& value, auto&,
                        auto& request) { request.ignore_eos = read_bool(field, value); }},
      {"n",
       [](auto& field, auto& value, auto&, auto&) {
         if (value != 1) refuse(field, "be 1", value);
       }},
      {"stream", [](auto& field, auto& value, auto&,
                    auto& request) { request.stream = read_bool(field, value); }},
      {"stream_options",
       [](auto&, auto& value, auto&, auto& request) { read_stream_options(value, request); }},
      {"user",  // for the client's own records
       [](auto& field, auto& value, auto&, auto&) {
         if (!value.is_string()) refuse(field, "be a string", value);
       }},
  };
  return table;
}

std::string known_fields() {
  std::string names;
  for (const auto& [name, reader] : readers()) names += (names.empty() ? "" : ", ") + name;
  return names;
}

bool check_nesting(int depth, json::parse_event_t, json&) {
  if (depth <= kMaxNesting) return true;
  throw ApiError(400, "invalid_request_error",
                 "the body must be nested at most " + std::to_string(kMaxNesting) + " deep");
}

json parse_object(const std::string& body) {
  json object;
  try {
    object = json::parse(body, check_nesting);
  } catch (const json::exception& error) {
    throw ApiError(400, "invalid_request_error",
                   std::string("the body must be JSON: ") + error.what());
  }
  if (!object.is_object()) refuse("body", "be a JSON object", object);
  return object;
}

json usage(const Completion& completion) {
  return {{"prompt_tokens", completion.prompt_tokens},
          {"completion_tokens", completion.completion_tokens},
          {"total_tokens", completion.prompt_tokens + completion.completion_tokens}};
}

/// How the answer came about: with the seed it can be had again.
json speculation(const Completion& completion) {
  const treespec::Stats& stats = completion.stats;
  return {{"seed", completion.seed},
          {"target_forwards", stats.rounds},
          {"drafted_tokens", stats.drafted_nodes},
          {"accepted_by_depth", stats.accepted_by_depth},
          {"tokens_per_forward", stats.block_efficiency()}};
}

json completion_object(const Completion& completion, json choices) {
  return {{"id", completion.id},
          {"object", "text_completion"},
          {"created", completion.created},
          {"model", completion.model},
          {"choices", std::move(choices)}};
}

json choice(const Completion& completion, const std::string& text) {
  const std::string& reason = completion.finish_reason;
  return {{"index", 0},
          {"text", text},
          {"logprobs", nullptr},
          {"finish_reason", reason.empty() ? json() : json(reason)}};
}

std::string event(const json& data) { return "data: " + dump(data) + "\n\n"; }

json error_object(const ApiError& error) {
  return {{"error",
           {{"message", error.what()},
            {"type", error.type},
            {"param", error.param.empty() ? json() : json(error.param)},
            {"code", nullptr}}}};
}

}  // namespace

void refuse(const std::string& field, const std::string& rule, const json& got) {
  throw ApiError(400, "invalid_request_error", field + " must " + rule + ", got " + shown(got),
                 field);
}

CompletionRequest parse_completion(const std::string& body, const ApiLimits& limits) {
  const json object = parse_object(body);
  CompletionRequest request;
  request.seed = random_seed();
  for (const auto& [field, value] : object.items()) {
    const auto reader = readers().find(field);
    if (reader == readers().end()) {
      throw ApiError(400, "invalid_request_error",
                     "fields must be among " + known_fields() + ", got " + shown(field), field);
    }
    if (!value.is_null()) reader->second(field, value, limits, request);  // null: not given
  }
  if (!object.contains("prompt") || object["prompt"].is_null()) {
    throw ApiError(400, "invalid_request_error", "prompt must be given", "prompt");
  }
  if (request.include_usage && !request.stream) {
    refuse("stream_options", "come with \"stream\": true", object["stream_options"]);
  }
  return request;
}

std::string completion_body(const Completion& completion, const std::string& text) {
  json object = completion_object(completion, json::array({choice(completion, text)}));
  object["usage"] = usage(completion);
  object["speculation"] = speculation(completion);
  return dump(object);
}

std::string text_event(const Completion& completion, const std::string& text) {
  json object = completion_object(completion, json::array({choice(completion, text)}));
  if (completion.has_usage) object["usage"] = nullptr;  // comes in an event of its own
  if (!completion.finish_reason.empty()) object["speculation"] = speculation(completion);
  return event(object);
}

std::string usage_event(const Completion& completion) {
  json object = completion_object(completion, json::array());
  object["usage"] = usage(completion);
  return event(object);
}

std::string error_event(const ApiError& error) { return event(error_object(error)); }

std::string error_body(const ApiError& error) { return dump(error_object(error)); }

std::string models_body(const std::string& model, int64_t created, int32_t max_context) {
  return dump({{"object", "list"},
               {"data", json::array({{{"id", model},
                                      {"object", "model"},
                                      {"created", created},
                                      {"owned_by", "treespec"},
                                      {"max_model_len", max_context}}})}});
}

}  // namespace service
