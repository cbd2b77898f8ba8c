// SPDX-License-Identifier: Apache-2.0
// Growth maps: golden values, the heap against the dynamic program, shapes shared by threads.
#include "treespec/growth_map.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "check.h"
#include "treespec/error.h"
#include "treespec/tree_builder.h"

namespace {

using namespace treespec;  // NOLINT
using Ints = std::vector<int32_t>;

bool near(double a, double b) { return std::abs(a - b) < 1e-12; }

/// Rows that never rise and sum to less than 1.
AcceptanceTable falling_table(std::mt19937& random, int32_t depths, int32_t width) {
  std::uniform_real_distribution<double> share(0.05, 0.6);
  AcceptanceTable table(static_cast<size_t>(depths));
  for (auto& row : table) {
    double left = 1.0;
    for (int32_t r = 0; r < width; ++r) {
      const double most = row.empty() ? 1.0 : row.back();
      row.push_back(std::min(most, left * share(random)));
      left -= row.back();
    }
  }
  return table;
}

void golden_maps_have_the_papers_values() {
  const AcceptanceTable table{{0.6, 0.2}};
  const GrowthMap chain = optimal_growth_map(table, 3);
  CHECK(chain.parent == Ints({0, 1, 2}));
  CHECK(near(expected_tokens(chain, table), 2.176));
  const GrowthMap shallow = optimal_growth_map(table, 3, 2);
  CHECK(shallow.parent == Ints({0, 1, 0}));
  CHECK(near(expected_tokens(shallow, table), 2.16));
  CHECK(optimal_growth_map(table, 0).parent.empty());
  CHECK(optimal_growth_map(table, 9, 0).parent.empty());
  CHECK(shallow.depths() == Ints({0, 1, 2, 1}));
}

void the_heap_equals_the_dynamic_program_on_falling_rows() {
  std::mt19937 random(3);
  for (int trial = 0; trial < 60; ++trial) {
    const AcceptanceTable table = falling_table(random, 1 + trial % 3, 1 + trial % 4);
    const int32_t num_nodes = trial % 30, max_depth = 1 + trial % 7;
    const GrowthMap heap = optimal_growth_map(table, num_nodes, max_depth);
    const GrowthMap exact = optimal_growth_map_dp(table, num_nodes, max_depth);
    CHECK(heap.num_nodes() <= num_nodes && exact.num_nodes() <= num_nodes);
    CHECK(near(expected_tokens(heap, table), expected_tokens(exact, table)));
    const GrowthMap larger = optimal_growth_map(table, num_nodes + 5, max_depth);
    CHECK(larger.num_nodes() >= heap.num_nodes());
    CHECK(std::equal(heap.parent.begin(), heap.parent.end(), larger.parent.begin()));
  }
}

void rising_rows_are_smoothed_by_the_heap_and_used_by_the_program() {
  CHECK(non_increasing_fit({0.5, 0.1, 0.3}) == std::vector<double>({0.5, 0.2, 0.2}));
  CHECK(near(non_increasing_fit({0.1, 0.4}, {3.0, 1.0})[1], 0.7 / 4.0));
  CHECK(non_increasing_fit({}).empty());
  // The second sibling is worth more than the first: with two nodes, only siblings reach it.
  const AcceptanceTable rising{{0.1, 0.6}};
  CHECK(optimal_growth_map_dp(rising, 2).parent == Ints({0, 0}));
  CHECK(near(expected_tokens(optimal_growth_map_dp(rising, 2), rising), 1.7));
}

void bad_maps_and_tables_are_refused() {
  CHECK_THROWS(InvalidArgument, check_growth_map("test", {{0, 2}}));
  CHECK_THROWS(InvalidArgument, check_growth_map("test", {{-1}}));
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const AcceptanceTable& bad :
       {AcceptanceTable{}, AcceptanceTable{{}}, AcceptanceTable{{0.6, 0.5}}, AcceptanceTable{{nan}},
        AcceptanceTable{{-0.1}}}) {
    CHECK_THROWS(InvalidArgument, optimal_growth_map(bad, 3));
    CHECK_THROWS(InvalidArgument, optimal_growth_map_dp(bad, 3));
    CHECK_THROWS(InvalidArgument, expected_tokens({{0}}, bad));
  }
  CHECK_THROWS(InvalidArgument, optimal_growth_map({{0.5}}, kMostMapNodes + 1));
}

void absurd_budgets_take_no_memory() {
  make_builder("chain")->begin(INT32_MAX, INT32_MAX, {});
  make_builder("kary", {{"expansion", std::vector<int64_t>{1000, 1000, 1000}}})
      ->begin(INT32_MAX, INT32_MAX, {});
  CHECK_THROWS(InvalidArgument, make_builder("sequoia")->begin(INT32_MAX, INT32_MAX, {}));
}

/// A shape is computed once per budget and depth; all threads may ask at the same time.
void one_builder_gives_all_threads_the_same_shapes() {
  const auto builder = make_builder("sequoia");
  const auto run = [](const TreeBuilder& shared, int32_t budget) {
    const Ints tokens{0, 1, 2, 3, 0, 1, 2, 3};
    const std::vector<float> logprob{-1.0f, -1.2f, -1.5f, -2.0f, -1.0f, -1.2f, -1.5f, -2.0f};
    Marginals source(tokens.data(), logprob.data(), 2, 4);
    return build_tree(shared, "sequoia", source, budget).parent;
  };
  constexpr int32_t kBudgets = 300;  // more than are kept
  std::vector<Ints> serial;
  for (int32_t n = 0; n < kBudgets; ++n) serial.push_back(run(*make_builder("sequoia"), n));
  std::atomic<int> mismatches{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int32_t n = 0; n < kBudgets; ++n) {
        if (run(*builder, n) != serial[n]) ++mismatches;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQUAL(mismatches.load(), 0);
}

}  // namespace

int main() {
  golden_maps_have_the_papers_values();
  the_heap_equals_the_dynamic_program_on_falling_rows();
  rising_rows_are_smoothed_by_the_heap_and_used_by_the_program();
  bad_maps_and_tables_are_refused();
  absurd_budgets_take_no_memory();
  one_builder_gives_all_threads_the_same_shapes();
  return 0;
}
