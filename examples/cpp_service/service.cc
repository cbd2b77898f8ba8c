// SPDX-License-Identifier: Apache-2.0
#include "service.h"

#include <sys/socket.h>

#include <ctime>
#include <filesystem>
#include <functional>
#include <iostream>
#include <stdexcept>
#include <thread>
#include <utility>

#include "text_stream.h"

namespace service {
namespace {

constexpr const char* kJson = "application/json";
constexpr int kHungUp = 499;  // as nginx counts clients that did not wait for the answer

Options named(Options options) {
  if (options.name.empty()) {
    options.name = std::filesystem::canonical(options.model).filename().string();
  }
  return options;
}

void reply(httplib::Response& response, const ApiError& error) {
  response.status = error.status;
  if (error.status == 429 || error.status == 503) response.set_header("Retry-After", "1");
  response.set_content(error_body(error), kJson);
}

/// For what the HTTP library refuses by itself, before a handler sees it.
ApiError library_error(int status, const httplib::Request& request, size_t max_body) {
  switch (status) {
    case 404:
      return {404, "not_found_error",
              "the route must be POST /v1/completions, or GET /v1/models, /health or /metrics, "
              "got " +
                  request.method + " " + request.path};
    case 413:
      return {413, "invalid_request_error",
              "the body must be at most " + std::to_string(max_body) + " bytes"};
    default:
      return {status, status < 500 ? "invalid_request_error" : "server_error",
              "the request must be well-formed HTTP"};
  }
}

/// Reads a body of at most `max_size` bytes; the rest of a longer one is read and dropped, so that
/// the client hears of it. The library counts bodies before they are unpacked, and those alone
/// whose length was announced. Throws 413, or 400 for what is no body.
std::string read_body(const httplib::Request& request, const httplib::Response& response,
                      const httplib::ContentReader& read, size_t max_size) {
  std::string body;
  size_t size = 0;
  const auto keep = [&](const char* data, size_t count) {
    size += count;
    if (size <= max_size) body.append(data, count);
    return true;
  };
  const bool whole = request.is_multipart_form_data()
                         ? read([](const httplib::MultipartFormData&) { return true; }, keep)
                         : read(keep);
  if (size > max_size) throw library_error(413, request, max_size);
  if (!whole) throw library_error(response.status, request, max_size);
  return body;
}

/// The library's default lets two services share a port without a word.
void refuse_taken_ports(socket_t socket) {
  const int yes = 1;
  setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
}

}  // namespace

/// The answer to one request: its generation, and what the client is told of it.
class Service::Answer {
 public:
  Answer(Service& service, CompletionRequest request, std::vector<int32_t> prompt,
         Connection connection, Clock::time_point arrival, SlotPool::Lease slot)
      : service_(service),
        request_(std::move(request)),
        prompt_(std::move(prompt)),
        connection_(connection),
        arrival_(arrival),
        slot_(std::move(slot)),
        text_(service.tokenizer_, request_.stop) {
    completion_.id =
        "cmpl-" + std::to_string(service.started_) + "-" + std::to_string(service.num_answers_++);
    completion_.created = std::time(nullptr);
    completion_.model = service.options_.name;
    completion_.prompt_tokens = prompt_.size();
    completion_.seed = request_.seed;
    completion_.has_usage = !request_.stream || request_.include_usage;
  }

  /// Everything at once.
  std::string body() {
    generate([] { return true; });
    return completion_body(completion_, text_.finish());
  }

  /// Events as rounds are committed; false when the client is gone. All in one call, since the
  /// library asks nobody for more once the service shuts down.
  bool stream(httplib::DataSink& sink) {
    const auto send = [&](const std::string& event) {
      return sink.write(event.data(), event.size());
    };
    try {
      generate([&] {
        const std::string piece = text_.take();
        return piece.empty() || send(text_event(completion_, piece));
      });
      send(text_event(completion_, text_.finish()));
      if (request_.include_usage) send(usage_event(completion_));
      send(kDoneEvent);
    } catch (const std::exception& error) {  // the status is sent already
      send(error_event(service_.failure(error)));
    }
    sink.done();
    return true;
  }

 private:
  void generate(const std::function<bool()>& send) {
    std::string why;  // it was cancelled
    bool is_first = true;
    treespec::GenerateOptions options;
    options.max_new_tokens = request_.max_tokens;
    options.sampling = request_.sampling;
    options.seed = request_.seed;
    if (!request_.ignore_eos) options.stop_token_ids = service_.models_.manifest().eos_token_ids;
    options.stop_when = [&](treespec::ArrayView<const int32_t> output) {
      return text_.push(output[output.size() - 1]);
    };
    options.on_tokens = [&](treespec::ArrayView<const int32_t>) {
      if (std::exchange(is_first, false)) service_.metrics_.observe_first_token(age());
      why = reason_to_cancel();
      if (why.empty() && !send()) why = "disconnected";
      return why.empty();
    };
    const treespec::GenerateResult result = (*slot_).decoder.generate(prompt_, options);
    finish(result, why);
  }

  void finish(const treespec::GenerateResult& result, const std::string& why) {
    // An end-of-text token stops before `stop_when` is asked.
    for (size_t i = text_.num_tokens(); i < result.token_ids.size(); ++i) {
      text_.push(result.token_ids[i]);
    }
    switch (result.stop_reason) {
      case treespec::StopReason::kMaxTokens:
        completion_.finish_reason = "length";
        break;
      case treespec::StopReason::kCancelled:
        completion_.finish_reason = why;
        break;
      default:
        completion_.finish_reason = "stop";
    }
    completion_.completion_tokens = result.token_ids.size();
    completion_.stats = result.stats;
    const bool hung_up = why == "disconnected";  // perhaps with the last token
    service_.metrics_.count_request(hung_up ? kHungUp : 200,
                                    hung_up ? why : completion_.finish_reason);
    service_.metrics_.count_answer(prompt_.size(), result.token_ids.size(), result.stats, age());
  }

  std::string reason_to_cancel() const {
    if (connection_.closed()) return "disconnected";
    if (service_.cancelled_) return "cancelled";
    return age() > service_.options_.timeout ? "timeout" : "";
  }

  double age() const { return std::chrono::duration<double>(Clock::now() - arrival_).count(); }

  Service& service_;
  CompletionRequest request_;
  std::vector<int32_t> prompt_;
  Connection connection_;
  Clock::time_point arrival_;
  SlotPool::Lease slot_;
  TextStream text_;
  Completion completion_;
};

Service::Service(const Options& options)
    : options_(named(options)),
      tokenizer_(options_.model),
      models_(options_),
      slots_(models_.make_slots(options_.slots), static_cast<size_t>(options_.queue)),
      started_(std::time(nullptr)) {
  const auto threads = static_cast<size_t>(options_.connections);
  http_.new_task_queue = [threads] { return new httplib::ThreadPool(threads); };
  http_.set_socket_options(refuse_taken_ports);
  http_.set_tcp_nodelay(true);
  http_.set_keep_alive_max_count(1000);
  http_.set_keep_alive_timeout(options_.read_timeout);
  http_.set_read_timeout(options_.read_timeout);
  http_.set_write_timeout(options_.write_timeout);
  http_.set_payload_max_length(options_.max_body);
  add_routes();
}

void Service::add_routes() {
  using httplib::Request, httplib::Response;
  http_.Post("/v1/completions", [this](const Request& request, Response& response,
                                       const httplib::ContentReader& read) {
    try {
      complete(request, read_body(request, response, read, options_.max_body), response);
    } catch (const ApiError& error) {
      metrics_.count_request(error.status, error.status == kHungUp ? "disconnected" : "refused");
      reply(response, error);
    } catch (const std::exception& error) {
      reply(response, failure(error));
    }
  });
  http_.Get("/v1/models", [this](const Request&, Response& response) {
    response.set_content(models_body(options_.name, started_, models_.max_context()), kJson);
  });
  http_.Get("/health", [this](const Request&, Response& response) {
    response.status = draining_ ? 503 : 200;
    response.set_content(draining_ ? R"({"status":"draining"})" : R"({"status":"ok"})", kJson);
  });
  http_.Get("/metrics", [this](const Request&, Response& response) {
    const Gauges gauges{slots_.num_slots(), slots_.num_running(), slots_.num_waiting()};
    response.set_content(metrics_.text(gauges), "text/plain; version=0.0.4");
  });
  http_.set_error_handler([this](const Request& request, Response& response) {
    if (!response.body.empty()) return;  // a handler's own
    reply(response, library_error(response.status, request, options_.max_body));
  });
}

void Service::complete(const httplib::Request& request, const std::string& body,
                       httplib::Response& response) {
  const Clock::time_point arrival = Clock::now();
  if (draining_) throw ApiError(503, "server_error", "the service is shutting down");
  CompletionRequest wanted = parse_completion(body, {options_.name, models_.manifest().vocab_size});
  std::vector<int32_t> prompt = prompt_ids(wanted);
  const bool streams = wanted.stream;
  const Connection connection(request.remote_addr, request.remote_port);
  const auto answer =
      std::make_shared<Answer>(*this, std::move(wanted), std::move(prompt), connection, arrival,
                               wait_for_slot(connection, arrival));
  if (!streams) {
    response.set_content(answer->body(), kJson);
    return;
  }
  response.set_header("Cache-Control", "no-cache");
  response.set_header("X-Accel-Buffering", "no");  // nginx would hold events back
  response.set_chunked_content_provider(
      "text/event-stream",
      [answer](size_t, httplib::DataSink& sink) { return answer->stream(sink); });
}

std::vector<int32_t> Service::prompt_ids(const CompletionRequest& request) const {
  const auto* text = std::get_if<std::string>(&request.prompt);
  auto ids =
      text == nullptr ? std::get<std::vector<int32_t>>(request.prompt) : tokenizer_.encode(*text);
  if (ids.empty()) refuse("prompt", "have at least one token", *text);
  const int64_t length = static_cast<int64_t>(ids.size()) + request.max_tokens;
  if (length > models_.max_context()) {
    throw ApiError(400, "invalid_request_error",
                   "prompt and max_tokens must be at most " +
                       std::to_string(models_.max_context()) + " tokens together, got " +
                       std::to_string(ids.size()) + " + " + std::to_string(request.max_tokens),
                   "max_tokens");
  }
  return ids;
}

SlotPool::Lease Service::wait_for_slot(const Connection& connection, Clock::time_point arrival) {
  const Clock::time_point deadline = arrival + std::chrono::seconds(options_.timeout);
  auto slot =
      slots_.acquire([&] { return connection.closed() || cancelled_ || Clock::now() > deadline; });
  if (auto* lease = std::get_if<SlotPool::Lease>(&slot)) return std::move(*lease);
  if (std::get<SlotPool::Refusal>(slot) == SlotPool::Refusal::kFull) {
    throw ApiError(429, "rate_limit_error",
                   "requests that wait must be at most " + std::to_string(options_.queue));
  }
  if (connection.closed()) throw ApiError(kHungUp, "client_error", "the client hung up");
  throw ApiError(503, "server_error",
                 cancelled_ ? "the service is shutting down" : "no slot became free in time");
}

ApiError Service::failure(const std::exception& error) {
  std::cerr << "cpp_service: " << error.what() << std::endl;
  metrics_.count_request(500, "error");
  return {500, "server_error", "the answer could not be generated"};
}

int Service::bind() {
  const int port = options_.port == 0 ? http_.bind_to_any_port(options_.host) : options_.port;
  if (options_.port == 0 ? port > 0 : http_.bind_to_port(options_.host, port)) return port;
  throw std::runtime_error("bind: --host and --port must be free to listen on, got " +
                           options_.host + ":" + std::to_string(options_.port));
}

void Service::drain() {
  draining_ = true;
  if (stopped_ || !http_.is_running()) return;
  http_.stop();
  stopped_ = true;
}

}  // namespace service
