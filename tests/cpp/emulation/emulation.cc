// SPDX-License-Identifier: Apache-2.0
#include "emulation.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"

namespace treespec::simt::emulation {
namespace {

constexpr int kMaxThreads = 1024;
constexpr size_t kStackBytes = 64 * 1024;

/// SplitMix64 (Steele, Lea and Flood, 2014).
uint64_t next_random(uint64_t& state) {
  uint64_t z = state += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

enum class State { kReady, kAtBlock, kAtWarp, kReturned };

struct Thread {
  Fiber fiber;
  Position position;
  State state = State::kReady;
  Site site{"", "", 0};
};

struct Warp {
  uint32_t ready = 0;   ///< lanes that may run
  int num_waiting = 0;  ///< lanes at the exchange
  int parity = 0;       ///< table of the exchange under way; the other one is still being read
  Table table[2];
};

class Machine;
thread_local Machine* running = nullptr;
thread_local uint64_t order_seed = 0;

std::string readable(const char* mangled) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> name(
      abi::__cxa_demangle(mangled, nullptr, nullptr, &status), std::free);
  return status == 0 ? name.get() : mangled;
}

/// Runs one block at a time; kept from launch to launch for its stacks.
class Machine {
 public:
  Machine() : stacks_(kMaxThreads, kStackBytes), threads_(kMaxThreads) {}

  void run_grid(const char* kernel_name, Body body, const void* kernel, int num_threads,
                const Grid& grid);
  void run_thread();
  void wait_for_block(const Site& site);
  const Table& exchange(const Site& site, const void* value, int words);
  [[noreturn]] void fail(const std::string& what);

 private:
  void run_block(int64_t block, int64_t block_y);
  void poison_shared_memory();
  void check_shared_memory();
  int choose_warp();
  void run_lanes(int warp);
  void resume(int thread);
  void suspend(State state);
  void require_same_site(const Site& site, int thread);
  [[noreturn]] void report_deadlock();
  std::string describe(int thread) const;

  static constexpr size_t kCanaryBytes = 256;
  static constexpr char kCanary = 0x5B;

  Stacks stacks_;
  std::vector<Thread> threads_;
  Warp warps_[kMaxThreads / kWarpSize];
  std::vector<char> shared_;
  char* shared_start_ = nullptr;
  Fiber scheduler_;

  const char* kernel_name_ = "";
  Body body_ = nullptr;
  const void* kernel_ = nullptr;
  int num_threads_ = 0;
  Grid grid_;
  uint64_t random_ = 0;
  int current_ = 0;
  int num_at_block_ = 0;
  int num_returned_ = 0;
  std::string mistake_;
};

void enter_thread() { running->run_thread(); }

void Machine::run_grid(const char* kernel_name, Body body, const void* kernel, int num_threads,
                       const Grid& grid) {
  kernel_name_ = kernel_name;
  body_ = body;
  kernel_ = kernel;
  num_threads_ = num_threads;
  grid_ = grid;
  random_ = order_seed;
  shared_.assign(grid.shared_bytes + kCanaryBytes + 15, 0);
  const auto address = reinterpret_cast<uintptr_t>(shared_.data());
  shared_start_ = shared_.data() + (16 - address % 16) % 16;

  std::vector<int64_t> order(static_cast<size_t>(grid.x * grid.y));
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = order.size(); order_seed != 0 && i > 1; --i) {
    std::swap(order[i - 1], order[next_random(random_) % i]);
  }
  for (const int64_t block : order) run_block(block % grid.x, block / grid.x);
}

void Machine::run_block(int64_t block, int64_t block_y) {
  poison_shared_memory();
  num_at_block_ = 0;
  num_returned_ = 0;
  for (int t = 0; t < num_threads_; ++t) {
    threads_[t].position = {t, static_cast<int>(block), static_cast<int>(block_y),
                            static_cast<int>(grid_.x), shared_start_};
    threads_[t].state = State::kReady;
    prepare(threads_[t].fiber, enter_thread, stacks_[t], kStackBytes);
  }
  for (int w = 0; w < num_threads_ / kWarpSize; ++w) {
    warps_[w].ready = ~0u;
    warps_[w].num_waiting = 0;
  }
  while (num_returned_ < num_threads_) {
    const int warp = choose_warp();
    if (warp < 0) report_deadlock();
    run_lanes(warp);
  }
  check_shared_memory();
}

void Machine::poison_shared_memory() {
  // Not one byte repeated: a block must not find what another one would have.
  // Words, the last of which may reach into the guard, which comes after.
  uint64_t random = random_;
  for (size_t at = 0; at < grid_.shared_bytes; at += sizeof random) {
    const uint64_t rubbish = next_random(random);
    std::memcpy(shared_start_ + at, &rubbish, sizeof rubbish);
  }
  random_ = random;
  std::memset(shared_start_ + grid_.shared_bytes, kCanary, kCanaryBytes);
}

void Machine::check_shared_memory() {
  const char* canary = shared_start_ + grid_.shared_bytes;
  if (std::any_of(canary, canary + kCanaryBytes, [](char c) { return c != kCanary; })) {
    fail("wrote past its shared memory of " + std::to_string(grid_.shared_bytes) + " bytes");
  }
}

int Machine::choose_warp() {
  const int num_warps = num_threads_ / kWarpSize;
  const auto start =
      order_seed == 0 ? 0
                      : static_cast<int>(next_random(random_) % static_cast<uint64_t>(num_warps));
  for (int i = 0; i < num_warps; ++i) {
    const int warp = (start + i) % num_warps;
    if (warps_[warp].ready != 0) return warp;
  }
  return -1;
}

/// Runs a warp for a while: in half of the cases on through its next exchange, so that warps get
/// far ahead of one another.
void Machine::run_lanes(int warp) {
  do {
    const uint64_t random = order_seed == 0 ? 0 : next_random(random_);
    const auto step = static_cast<int>(random % 16) * 2 + 1;  // odd: visits every lane
    const auto offset = static_cast<int>(random >> 8 & 31u);
    const uint32_t ready = warps_[warp].ready;
    for (int i = 0; i < kWarpSize; ++i) {
      const int lane = (i * step + offset) % kWarpSize;
      if ((ready >> lane & 1u) != 0) resume(warp * kWarpSize + lane);
    }
  } while (warps_[warp].ready != 0 && (order_seed == 0 || next_random(random_) % 2 == 0));
}

void Machine::resume(int thread) {
  current_ = thread;
  position = &threads_[thread].position;
  warps_[thread / kWarpSize].ready &= ~(1u << thread % kWarpSize);
  switch_fiber(scheduler_, threads_[thread].fiber);
  position = nullptr;
  if (!mistake_.empty()) throw Mistake(std::exchange(mistake_, ""));
}

void Machine::suspend(State state) {
  threads_[current_].state = state;
  switch_fiber(threads_[current_].fiber, scheduler_);
}

void Machine::run_thread() {
  body_(kernel_);
  ++num_returned_;
  suspend(State::kReturned);
}

void Machine::wait_for_block(const Site& site) {
  threads_[current_].site = site;
  if (++num_at_block_ == num_threads_) {
    for (int t = 0; t < num_threads_; ++t) require_same_site(site, t);
    num_at_block_ = 0;
    for (int w = 0; w < num_threads_ / kWarpSize; ++w) warps_[w].ready = ~0u;
  }
  suspend(State::kAtBlock);
}

const Table& Machine::exchange(const Site& site, const void* value, int words) {
  const int lane = current_ % kWarpSize;
  const int first = current_ - lane;
  Warp& warp = warps_[first / kWarpSize];
  Table& table = warp.table[warp.parity];
  threads_[current_].site = site;
  std::memcpy(table.word[lane], value, static_cast<size_t>(words) * sizeof(uint32_t));
  if (++warp.num_waiting == kWarpSize) {
    for (int t = first; t < first + kWarpSize; ++t) require_same_site(site, t);
    warp.num_waiting = 0;
    warp.parity ^= 1;
    warp.ready = ~0u;
  }
  suspend(State::kAtWarp);
  return table;
}

void Machine::require_same_site(const Site& site, int thread) {
  const auto same = [](const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; };
  const Site& other = threads_[thread].site;
  if (site.line == other.line && same(site.what, other.what) && same(site.file, other.file)) return;
  fail("threads met at different places: " + describe(current_) + ", " + describe(thread));
}

void Machine::report_deadlock() {
  int waiting = 0;
  while (threads_[waiting].state == State::kReturned) ++waiting;
  const bool at_block = threads_[waiting].state == State::kAtBlock;
  const int first = at_block ? 0 : waiting / kWarpSize * kWarpSize;
  int missing = first;
  while (threads_[missing].state == threads_[waiting].state) ++missing;
  fail("waits for ever: " + describe(waiting) + ", " + describe(missing));
}

std::string Machine::describe(int thread) const {
  const Thread& t = threads_[thread];
  const std::string name = "thread " + std::to_string(thread);
  if (t.state == State::kReturned) return name + " has returned";
  return name + " at " + t.site.what + " (" + t.site.file + ":" + std::to_string(t.site.line) + ")";
}

void Machine::fail(const std::string& what) {
  const Position& at = threads_[current_].position;
  const std::string message = readable(kernel_name_) + ", block (" + std::to_string(at.block) +
                              ", " + std::to_string(at.block_y) + "): " + what;
  if (position == nullptr) throw Mistake(message);
  mistake_ = message;  // an exception cannot leave a fiber: the scheduler throws it
  switch_fiber(threads_[current_].fiber, scheduler_);
  std::abort();
}

}  // namespace

void set_order(uint64_t seed) { order_seed = seed; }

void wait_for_block(const Site& site) { running->wait_for_block(site); }
const Table& exchange(const Site& site, const void* value, int words) {
  return running->exchange(site, value, words);
}
void fail(const char* what) { running->fail(what); }

void run_grid(const char* kernel_name, Body body, const void* kernel, int num_threads,
              const Grid& grid) {
  static thread_local Machine machine;
  running = &machine;
  machine.run_grid(kernel_name, body, kernel, num_threads, grid);
}

}  // namespace treespec::simt::emulation
