// SPDX-License-Identifier: Apache-2.0
// Threads that wait for each other wherever they need a graph, so that one run serves all.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <utility>
#include <vector>

namespace treespec::exported {

/// A request that waits for a run.
struct Pending {
  int64_t place = 0;  ///< of its sequence
  int64_t since = 0;  ///< runs before it came
  bool done = false;
  std::exception_ptr error;
};

/// Requests for one graph. Called under the lock of its LockStep.
class RequestQueue {
 public:
  virtual ~RequestQueue() = default;
  virtual bool empty() const = 0;
  /// Runs some of the requests, of which there are, and marks them done, with their error if they
  /// failed. Returns how many.
  virtual int64_t run() noexcept = 0;
};

/// The meeting point. A thread that has entered runs until it waits for a request. When all of them
/// wait, one runs the first queue that has requests, the others look on. Hence no graph is run
/// while a thread reads what the last run gave it.
class LockStep {
 public:
  using Lock = std::unique_lock<std::mutex>;

  /// In order of precedence: drafters before the target, which all reach in the end.
  explicit LockStep(std::vector<RequestQueue*> queues) : queues_(std::move(queues)) {}

  Lock lock() { return Lock(mutex_); }
  void enter() {
    const Lock held = lock();
    ++num_entered_;
  }
  void leave() {
    const Lock held = lock();
    --num_entered_;
    condition_.notify_all();
  }
  /// Returns when the request, which is in its queue already, is done; throws its error.
  void wait(Lock& held, Pending& request) {
    request.since = num_runs_;
    ++num_waiting_;
    while (!request.done) {
      if (num_waiting_ == num_entered_) {
        run_next();
      } else {
        condition_.wait(held);
      }
    }
    if (request.error != nullptr) std::rethrow_exception(request.error);
  }

 private:
  void run_next() {
    for (RequestQueue* queue : queues_) {
      if (queue->empty()) continue;
      ++num_runs_;
      num_waiting_ -= queue->run();
      condition_.notify_all();
      return;
    }
  }

  std::vector<RequestQueue*> queues_;
  std::mutex mutex_;
  std::condition_variable condition_;
  int64_t num_entered_ = 0, num_waiting_ = 0, num_runs_ = 0;
};

}  // namespace treespec::exported
