// SPDX-License-Identifier: Apache-2.0
// Counters of the service, in Prometheus' text format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "treespec/stats.h"

namespace service {

/// What is true at the moment it is asked for.
struct Gauges {
  size_t slots = 0, running = 0, waiting = 0;
};

/// Safe to use from several threads.
class Metrics {
 public:
  /// How a request ended: `result` is its finish reason, "disconnected", "refused" or "error".
  void count_request(int http_status, const std::string& result);
  /// What went into an answer, also one that nobody waited for. Seconds since the request came.
  void count_answer(size_t prompt_tokens, size_t completion_tokens, const treespec::Stats& stats,
                    double seconds);
  void observe_first_token(double seconds);

  std::string text(const Gauges& gauges) const;

 private:
  struct Duration {
    double sum = 0;
    int64_t count = 0;
  };

  mutable std::mutex mutex_;
  std::map<std::pair<int, std::string>, int64_t> requests_;
  int64_t prompt_tokens_ = 0, completion_tokens_ = 0;
  treespec::Stats stats_;
  Duration first_token_, answer_;
};

}  // namespace service
