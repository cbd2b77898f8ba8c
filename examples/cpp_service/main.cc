// SPDX-License-Identifier: Apache-2.0
// Starts the service, and ends it when it is told to.
#include <malloc.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <ctime>
#include <exception>
#include <iostream>
#include <string>
#include <thread>

#include "options.h"
#include "service.h"

namespace {

using Clock = std::chrono::steady_clock;

/// SIGTERM and SIGINT, blocked in this thread and all that it starts: they are waited for instead,
/// where any function may be called.
class StopSignals {
 public:
  StopSignals() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGTERM);
    sigaddset(&set_, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);
  }

  /// True when one came; false after a tenth of a second without.
  bool wait() const {
    const timespec tenth{0, 100'000'000};
    return sigtimedwait(&set_, nullptr, &tenth) > 0;
  }

 private:
  sigset_t set_;
};

/// Any thread of a connection may generate, and glibc gives each an arena of its own, up to eight a
/// core, that keeps what an answer took. No more threads are at work than slots, and one that
/// reads.
void share_arenas(int slots) {
#ifdef M_ARENA_MAX
  mallopt(M_ARENA_MAX, slots + 1);
#endif
}

std::string url_of(const std::string& host, int port) {
  const bool is_ipv6 = host.find(':') != std::string::npos;
  return "http://" + (is_ipv6 ? '[' + host + ']' : host) + ':' + std::to_string(port);
}

/// The first signal drains; the second one, or the end of the time for it, cancels.
void end_on_signal(const StopSignals& signals, service::Service& service, int drain_seconds,
                   const std::atomic<bool>& ended) {
  while (!signals.wait()) {
    if (ended) return;
  }
  std::cerr << "cpp_service: finishing the answers" << std::endl;
  const auto deadline = Clock::now() + std::chrono::seconds(drain_seconds);
  do {
    service.drain();
  } while (!signals.wait() && Clock::now() < deadline && !ended);
  service.cancel();
}

}  // namespace

int main(int argc, char** argv) try {
  const service::Options options = service::parse_options(argc, argv);
  const StopSignals signals;
  share_arenas(options.slots);
  service::Service service(options);
  std::cout << "listening on " << url_of(options.host, service.bind()) << std::endl;
  std::atomic<bool> ended{false};
  std::thread ending([&] { end_on_signal(signals, service, options.drain_seconds, ended); });
  const bool served = service.run();
  ended = true;
  ending.join();
  return served ? 0 : 1;
} catch (const std::exception& error) {
  std::cerr << "cpp_service: " << error.what() << std::endl;
  return 1;
}
