// SPDX-License-Identifier: Apache-2.0
// The HTTP service: routes, the life of a request, and the end of the service.
#pragma once

#include <httplib.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "api.h"
#include "connection.h"
#include "metrics.h"
#include "model_pair.h"
#include "options.h"
#include "slot_pool.h"
#include "tokenizer.h"

namespace service {

/// A request is answered by the thread that reads it: it waits for a slot, generates there, and
/// writes. What it holds (slot, text, socket) goes with it, however it ends.
class Service {
 public:
  /// Loads everything. Throws what the loaders throw.
  explicit Service(const Options& options);

  /// Takes the port; returns it. Throws std::runtime_error when it is not to be had.
  int bind();
  /// Serves until `drain`, and returns when every answer is written. False when it cannot listen.
  bool run() { return http_.listen_after_bind(); }
  /// Takes no more connections and no more requests; those that are accepted go on. To be called
  /// again until `run` returns, which it may have to begin with. From one thread.
  void drain();
  /// Ends those, too: they are answered with what they have, finish reason "cancelled".
  void cancel() { cancelled_ = true; }

 private:
  using Clock = std::chrono::steady_clock;
  class Answer;

  void add_routes();
  void complete(const httplib::Request& request, const std::string& body,
                httplib::Response& response);
  std::vector<int32_t> prompt_ids(const CompletionRequest& request) const;
  SlotPool::Lease wait_for_slot(const Connection& connection, Clock::time_point arrival);
  /// Logs and counts what is no fault of the client; returns what to tell it.
  ApiError failure(const std::exception& error);

  Options options_;
  Tokenizer tokenizer_;
  ModelPair models_;
  SlotPool slots_;
  Metrics metrics_;
  int64_t started_;  // seconds since 1970
  std::atomic<uint64_t> num_answers_{0};
  std::atomic<bool> draining_{false}, cancelled_{false};
  bool stopped_ = false;  // the HTTP library stops once
  httplib::Server http_;
};

}  // namespace service
