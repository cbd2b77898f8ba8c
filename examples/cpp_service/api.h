// SPDX-License-Identifier: Apache-2.0
// The shapes of OpenAI's completions API: requests read and checked, answers and errors written.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "treespec/decoder.h"
#include "treespec/sampling.h"

namespace service {

/// A request that is not answered, and why.
struct ApiError : std::runtime_error {
  ApiError(int status, std::string type, const std::string& message, std::string param = "")
      : std::runtime_error(message),
        status(status),
        type(std::move(type)),
        param(std::move(param)) {}

  int status;         ///< of HTTP
  std::string type;   ///< e.g. "invalid_request_error"
  std::string param;  ///< the field at fault, or empty
};

/// Throws 400 naming the field. `rule` completes "must".
[[noreturn]] void refuse(const std::string& field, const std::string& rule,
                         const nlohmann::json& got);

/// `POST /v1/completions`, checked.
struct CompletionRequest {
  std::variant<std::string, std::vector<int32_t>> prompt;
  int32_t max_tokens = 16;  // this default and those of sampling are OpenAI's
  treespec::SamplingParams sampling;
  uint64_t seed = 0;  ///< drawn when the client gives none
  std::vector<std::string> stop;
  bool ignore_eos = false;
  bool stream = false;
  bool include_usage = false;
};

/// What requests are checked against.
struct ApiLimits {
  std::string model;       ///< the only one there is
  int32_t vocab_size = 0;  ///< token ids of prompts are below
};

/// Throws ApiError: 400 naming field, rule and value; 404 for another model.
CompletionRequest parse_completion(const std::string& body, const ApiLimits& limits);

/// An answer, or what is known of it so far.
struct Completion {
  std::string id;
  int64_t created = 0;  ///< seconds since 1970
  std::string model;
  size_t prompt_tokens = 0;
  size_t completion_tokens = 0;
  std::string finish_reason;  ///< "stop", "length", "timeout", "cancelled"; empty: goes on
  uint64_t seed = 0;
  bool has_usage = false;  ///< the client wants to be told of its tokens
  treespec::Stats stats;
};

/// The whole answer.
std::string completion_body(const Completion& completion, const std::string& text);
/// Events of a stream: a piece of text, the last one with the finish reason; the usage after it.
std::string text_event(const Completion& completion, const std::string& text);
std::string usage_event(const Completion& completion);
std::string error_event(const ApiError& error);
constexpr const char* kDoneEvent = "data: [DONE]\n\n";

std::string error_body(const ApiError& error);
std::string models_body(const std::string& model, int64_t created, int32_t max_context);

}  // namespace service
