// SPDX-License-Identifier: Apache-2.0
// The emulation finds what it is there for: each kernel below has one mistake, and is seen.
#include <algorithm>
#include <cstring>
#include <set>
#include <simt.cuh>
#include <string>
#include <vector>

#include "check.h"

namespace {

using namespace treespec;  // NOLINT
using simt::Grid;
using simt::emulation::Mistake;

constexpr uint64_t kOrders = 8;

template <class Kernel>
std::string mistake_of(const Kernel& kernel, const Grid& grid = {}) {
  try {
    simt::launch(Stream{}, grid, kernel);
  } catch (const Mistake& mistake) {
    return mistake.what();
  }
  return "";
}

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

/// Each thread hands its number to the next one, a warp further on.
struct Rotate {
  static constexpr int kThreads = 128;
  int* out;
  bool with_barrier;
  TREESPEC_DEVICE void operator()() const {
    auto* shared = reinterpret_cast<int*>(simt::shared_memory());
    shared[simt::thread()] = simt::thread();
    if (with_barrier) simt::sync_block();
    out[simt::thread()] = shared[(simt::thread() + 33) % kThreads];
  }
};

void a_missing_barrier_changes_the_result_with_the_order() {
  constexpr Grid kGrid{1, 1, Rotate::kThreads * sizeof(int)};
  for (const bool with_barrier : {true, false}) {
    std::set<std::vector<int>> results;
    for (uint64_t order = 0; order < kOrders; ++order) {
      simt::emulation::set_order(order);
      std::vector<int> out(Rotate::kThreads);
      simt::launch(Stream{}, kGrid, Rotate{out.data(), with_barrier});
      results.insert(out);
    }
    CHECK_EQUAL(results.size() == 1, with_barrier);
    std::vector<int> expected(Rotate::kThreads);
    for (int t = 0; t < Rotate::kThreads; ++t) expected[t] = (t + 33) % Rotate::kThreads;
    CHECK_EQUAL(results == std::set<std::vector<int>>{expected}, with_barrier);
  }
}

/// The second barrier keeps a fast warp from overwriting what a slow one still reads.
struct RotateTwice {
  static constexpr int kThreads = 128;
  int* out;
  bool with_second_barrier;
  TREESPEC_DEVICE void operator()() const {
    auto* shared = reinterpret_cast<int*>(simt::shared_memory());
    int value = simt::thread();
    for (int i = 0; i < 2; ++i) {
      shared[simt::thread()] = value;
      simt::sync_block();
      value = shared[(simt::thread() + 33) % kThreads];
      if (with_second_barrier) simt::sync_block();
    }
    out[simt::thread()] = value;
  }
};

void a_missing_barrier_at_the_end_of_a_loop_is_found() {
  constexpr Grid kGrid{1, 1, RotateTwice::kThreads * sizeof(int)};
  for (const bool with_second_barrier : {true, false}) {
    std::set<std::vector<int>> results;
    for (uint64_t order = 0; order < kOrders; ++order) {
      simt::emulation::set_order(order);
      std::vector<int> out(RotateTwice::kThreads);
      simt::launch(Stream{}, kGrid, RotateTwice{out.data(), with_second_barrier});
      results.insert(out);
    }
    CHECK_EQUAL(results.size() == 1, with_second_barrier);
  }
}

/// Lanes pass a value on through shared memory.
struct PassInWarp {
  static constexpr int kThreads = 32;
  int* out;
  bool with_sync;
  TREESPEC_DEVICE void operator()() const {
    auto* shared = reinterpret_cast<int*>(simt::shared_memory());
    shared[simt::lane()] = simt::lane();
    if (with_sync) simt::sync_warp();
    out[simt::lane()] = shared[simt::lane() ^ 1];
  }
};

void a_missing_warp_barrier_changes_the_result_with_the_order() {
  constexpr Grid kGrid{1, 1, PassInWarp::kThreads * sizeof(int)};
  for (const bool with_sync : {true, false}) {
    std::set<std::vector<int>> results;
    for (uint64_t order = 0; order < kOrders; ++order) {
      simt::emulation::set_order(order);
      std::vector<int> out(PassInWarp::kThreads);
      simt::launch(Stream{}, kGrid, PassInWarp{out.data(), with_sync});
      results.insert(out);
    }
    CHECK_EQUAL(results.size() == 1, with_sync);
  }
}

struct HalfAtBarrier {
  static constexpr int kThreads = 64;
  bool other_half_too;
  TREESPEC_DEVICE void operator()() const {
    if (simt::thread() < 32) {
      simt::sync_block();
    } else if (other_half_too) {
      simt::sync_block();  // another barrier than the one above
    }
  }
};

struct OneLaneReturns {
  static constexpr int kThreads = 64;
  TREESPEC_DEVICE void operator()() const {
    if (simt::thread() == 40) return;
    simt::sync_block();
  }
};

void a_divergent_barrier_is_an_error() {
  for (uint64_t order = 0; order < kOrders; ++order) {
    simt::emulation::set_order(order);
    const std::string half = mistake_of(HalfAtBarrier{false});
    CHECK(contains(half, "HalfAtBarrier") && contains(half, "sync_block"));
    CHECK(contains(half, "emulation_test.cc:") && contains(half, "has returned"));
    CHECK(contains(mistake_of(HalfAtBarrier{true}), "different places"));
    CHECK(contains(mistake_of(OneLaneReturns{}), "thread 40 has returned"));
  }
}

struct HalfShuffles {
  static constexpr int kThreads = 32;
  int others;  // 0: return, 1: another shuffle, 2: a barrier
  TREESPEC_DEVICE void operator()() const {
    if (simt::lane() < 16) {
      simt::shuffle(simt::lane(), 0);
    } else if (others == 1) {
      simt::shuffle_xor(simt::lane(), 1);
    } else if (others == 2) {
      simt::sync_block();
    }
  }
};

void a_divergent_shuffle_is_an_error() {
  for (uint64_t order = 0; order < kOrders; ++order) {
    simt::emulation::set_order(order);
    CHECK(contains(mistake_of(HalfShuffles{0}), "has returned"));
    CHECK(contains(mistake_of(HalfShuffles{1}), "different places"));
    CHECK(contains(mistake_of(HalfShuffles{2}), "waits for ever"));
  }
}

struct ReadShared {
  static constexpr int kThreads = 32;
  uint32_t* out;
  TREESPEC_DEVICE void operator()() const {
    auto* shared = reinterpret_cast<uint32_t*>(simt::shared_memory());
    out[simt::block() * kThreads + simt::thread()] = shared[simt::thread()];
    shared[simt::thread()] = 0;
  }
};

struct WritePastShared {
  static constexpr int kThreads = 32;
  TREESPEC_DEVICE void operator()() const {
    reinterpret_cast<int*>(simt::shared_memory())[simt::thread()] = 1;
  }
};

void shared_memory_starts_as_rubbish_and_has_an_end() {
  std::vector<uint32_t> out(64);
  simt::launch(Stream{}, Grid{2, 1, 128}, ReadShared{out.data()});
  CHECK_EQUAL(std::set<uint32_t>(out.begin(), out.end()).size(), size_t{64});
  CHECK_EQUAL(mistake_of(WritePastShared{}, {1, 1, 128}), "");
  CHECK(contains(mistake_of(WritePastShared{}, {1, 1, 124}), "past its shared memory of 124"));
}

struct Misaligned {
  static constexpr int kThreads = 32;
  const char* from;
  TREESPEC_DEVICE void operator()() const { simt::load_16_bytes(from); }
};

void a_misaligned_wide_access_is_an_error() {
  alignas(16) const char memory[32] = {};
  CHECK_EQUAL(mistake_of(Misaligned{memory}), "");
  CHECK(contains(mistake_of(Misaligned{memory + 4}), "misaligned"));
}

/// What the order of blocks may not decide, it decides here.
struct LastBlock {
  static constexpr int kThreads = 32;
  int* last;
  TREESPEC_DEVICE void operator()() const {
    if (simt::thread() == 0) *last = simt::block() + simt::num_blocks() * simt::block_y();
  }
};

void blocks_run_in_the_order_of_the_seed() {
  std::set<int> last_blocks;
  for (uint64_t order = 0; order < kOrders; ++order) {
    simt::emulation::set_order(order);
    int last = -1;
    simt::launch(Stream{}, Grid{5, 3}, LastBlock{&last});
    last_blocks.insert(last);
    if (order == 0) CHECK_EQUAL(last, 14);
  }
  CHECK(last_blocks.size() > 2);
  int last = -1;
  simt::launch(Stream{}, Grid{0, 3}, LastBlock{&last});
  CHECK_EQUAL(last, -1);
  CHECK_THROWS(InvalidArgument, simt::launch(Stream{}, Grid{-1, 1}, LastBlock{&last}));
  CHECK_THROWS(InvalidArgument, simt::launch(Stream{}, Grid{1, 65536}, LastBlock{&last}));
  CHECK_THROWS(InvalidArgument, simt::launch(Stream{}, Grid{1, 1, 100 * 1024}, LastBlock{&last}));
}

struct Wide {
  uint64_t first;
  int32_t second, third;
};

/// All exchanges and atomics on known values.
struct Exchanges {
  static constexpr int kThreads = 64;
  int32_t* total;
  uint64_t* largest;
  int32_t* smallest;
  uint32_t* bits;
  int32_t* num_wrong;
  TREESPEC_DEVICE void operator()() const {
    const int me = simt::lane();
    const Wide mine{uint64_t{1} << 40 | static_cast<uint64_t>(me), me, -me};
    const Wide seventh = simt::shuffle(mine, 7 + simt::kWarpSize);
    const bool right =
        seventh.first == (uint64_t{1} << 40 | 7) && seventh.second == 7 && seventh.third == -7 &&
        simt::shuffle_xor(me, 5) == (me ^ 5) && simt::shuffle_up(me, 3) == (me < 3 ? me : me - 3) &&
        simt::ballot(me % 2 == 1) == 0xAAAAAAAAu && simt::any(me == 31) && !simt::any(me == 32) &&
        simt::count_bits(0xF1u) == 5 && simt::lowest_bit(12) == 2 && simt::lowest_bit(0) == -1 &&
        simt::highest_bit(12) == 3 && simt::highest_bit(0) == -1;
    if (!right) simt::atomic_add(num_wrong, 1);
    simt::atomic_add(total, simt::thread());
    simt::atomic_max(largest, uint64_t{1} << simt::thread());
    simt::atomic_min(smallest, -simt::thread());
    simt::atomic_or(bits, 1u << simt::lane());
  }
};

void exchanges_and_atomics_do_what_they_say() {
  for (uint64_t order = 0; order < kOrders; ++order) {
    simt::emulation::set_order(order);
    int32_t total = 0, smallest = 0, num_wrong = 0;
    uint64_t largest = 0;
    uint32_t bits = 0;
    simt::launch(Stream{}, Grid{}, Exchanges{&total, &largest, &smallest, &bits, &num_wrong});
    CHECK_EQUAL(num_wrong, 0);
    CHECK_EQUAL(total, 64 * 63 / 2);
    CHECK_EQUAL(largest, uint64_t{1} << 63);
    CHECK_EQUAL(smallest, -63);
    CHECK_EQUAL(bits, 0xFFFFFFFFu);
  }
}

}  // namespace

int main() {
  a_missing_barrier_changes_the_result_with_the_order();
  a_missing_barrier_at_the_end_of_a_loop_is_found();
  a_missing_warp_barrier_changes_the_result_with_the_order();
  a_divergent_barrier_is_an_error();
  a_divergent_shuffle_is_an_error();
  shared_memory_starts_as_rubbish_and_has_an_end();
  a_misaligned_wide_access_is_an_error();
  blocks_run_in_the_order_of_the_seed();
  exchanges_and_atomics_do_what_they_say();
  return 0;
}
