// SPDX-License-Identifier: Apache-2.0
#include "block_reduce.cuh"

#include <algorithm>
#include <random>
#include <vector>

#include "check.h"

namespace {

using namespace treespec;  // NOLINT

template <int kBlockThreads>
struct Reductions {
  static constexpr int kThreads = kBlockThreads;
  static constexpr size_t kSharedBytes = kThreads / simt::kWarpSize * sizeof(uint64_t);
  const int32_t* value;
  int32_t* sum;
  int32_t* before;
  int32_t* total;
  uint64_t* largest;
  int32_t* smallest;
  TREESPEC_DEVICE void operator()() const {
    const int t = simt::thread();
    auto* scratch = reinterpret_cast<int32_t*>(simt::shared_memory());
    auto* wide_scratch = reinterpret_cast<uint64_t*>(simt::shared_memory());
    sum[t] = simt::block_reduce<kThreads>(value[t], 0, simt::Sum{}, scratch);
    const auto prefix = simt::block_prefix_sum<kThreads>(value[t], scratch);
    before[t] = prefix.before;
    total[t] = prefix.total;
    const uint64_t key = static_cast<uint64_t>(value[t] + 1000) << 32 | static_cast<uint32_t>(t);
    largest[t] = simt::block_reduce<kThreads>(key, uint64_t{0}, simt::Max{}, wide_scratch);
    smallest[t] = simt::block_reduce<kThreads>(value[t], INT32_MAX, simt::Min{}, scratch);
  }
};

template <int kThreads>
void every_thread_gets_the_reduction() {
  std::mt19937 random(3);
  for (uint64_t order = 0; order < 6; ++order) {
    simt::emulation::set_order(order);
    std::vector<int32_t> value(kThreads), sum(kThreads), before(kThreads), total(kThreads);
    std::vector<int32_t> smallest(kThreads);
    std::vector<uint64_t> largest(kThreads);
    for (int32_t& v : value) v = static_cast<int32_t>(random() % 1000) - 500;
    using Kernel = Reductions<kThreads>;
    simt::launch(Stream{}, {1, 1, Kernel::kSharedBytes},
                 Kernel{value.data(), sum.data(), before.data(), total.data(), largest.data(),
                        smallest.data()});
    int32_t running = 0;
    uint64_t key = 0;
    for (int t = 0; t < kThreads; ++t) {
      CHECK_EQUAL(before[t], running);
      running += value[t];
      key = std::max(key, static_cast<uint64_t>(value[t] + 1000) << 32 | static_cast<uint32_t>(t));
    }
    for (int t = 0; t < kThreads; ++t) {
      CHECK_EQUAL(sum[t], running);
      CHECK_EQUAL(total[t], running);
      CHECK_EQUAL(largest[t], key);
      CHECK_EQUAL(smallest[t], *std::min_element(value.begin(), value.end()));
    }
  }
}

}  // namespace

int main() {
  every_thread_gets_the_reduction<32>();
  every_thread_gets_the_reduction<96>();
  every_thread_gets_the_reduction<256>();
  every_thread_gets_the_reduction<1024>();
  return 0;
}
