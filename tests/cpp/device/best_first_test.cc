// SPDX-License-Identifier: Apache-2.0
// device::build_best_first gives the very trees of the CPU's dtree, ties included.
#include "device/building.h"

namespace {

using namespace treespec;        // NOLINT
using namespace treespec::test;  // NOLINT

TokenTree on_cpu(const Tables& tables, int32_t b, int32_t budget, int32_t max_depth) {
  const auto source = tables.source(b);
  return build_tree(*make_builder("dtree", {{"max_depth", int64_t{max_depth}}}), "dtree", *source,
                    budget);
}

void check_tables(std::mt19937& random, const Tables& tables, int32_t most, int32_t max_depth) {
  const std::vector<int32_t> budget = random_budgets(random, tables.batch, most);
  const DeviceTables lists(tables);
  const DeviceTrees trees(tables.batch, most + 1, most + below(random, 2));
  const DeviceArray<int32_t> budgets(budget);
  const DeviceArray<uint32_t> status(no_status(tables.batch));
  device::build_best_first({}, lists.view(), max_depth, {budgets.data()}, trees.view(),
                           status.data());
  for (int32_t b = 0; b < tables.batch; ++b) {
    CHECK_EQUAL(status.to_host()[static_cast<size_t>(b)], 0u);
    trees.check_equal_to(on_cpu(tables, b, budget[static_cast<size_t>(b)], max_depth), b);
  }
}

Tables random_tables(std::mt19937& random, int32_t most_depth, int32_t most_width) {
  const bool marginals = below(random, 2) == 0;
  const int32_t rows = marginals ? 1 : 1 + below(random, 6);
  return Tables::random(random, marginals ? SourceKind::kMarginals : SourceKind::kTransitions,
                        1 + below(random, 3), 1 + below(random, most_depth), rows,
                        1 + below(random, most_width));
}

void equals_the_heap() {
  std::mt19937 random(5);
  for (int i = 0; i < num_cases(500); ++i) {
    set_order(i % num_orders());
    const int32_t max_depth = below(random, 3) == 0 ? below(random, 5) : INT32_MAX;
    check_tables(random, random_tables(random, 9, 40), below(random, 80), max_depth);
  }
}

void equals_the_heap_with_large_budgets() {
  std::mt19937 random(6);
  for (int i = 0; i < num_cases(24); ++i) {
    set_order(i % num_orders());
    const int32_t most = i % 3 == 0 ? device::kMostDrafted : 200 + below(random, 824);
    check_tables(random, random_tables(random, 16, i % 4 == 0 ? 1024 : 80), most, INT32_MAX);
  }
}

/// Nothing but ties, which fill the pool: it must be cut, and the order of tokens decides.
void equal_scores_are_cut_by_the_total_order() {
  std::mt19937 random(7);
  for (const float logprob : {0.0f, -1.0f, -1e-30f, -3e38f}) {
    for (const int32_t width : {1, 64, 1024}) {
      Tables t = Tables::random(random, SourceKind::kMarginals, 1, 12, 1, width);
      for (size_t i = 0; i < t.logprob.size(); ++i) {
        t.logprob[i] = logprob;
        t.token[i] = static_cast<int32_t>(3 * (i % static_cast<size_t>(width)));
      }
      for (const int32_t most : {5, 64, 700}) check_tables(random, t, most, INT32_MAX);
    }
  }
}

void what_is_wrong_is_reported() {
  std::mt19937 random(8);
  Tables t = Tables::random(random, SourceKind::kTransitions, 3, 3, 2, 4);
  for (size_t i = 0; i < t.logprob.size(); ++i) t.logprob[i] = -1.0f - static_cast<float>(i % 4);
  t.logprob[1] = NAN;
  for (int i = 0; i < 4; ++i) t.next[static_cast<size_t>(t.entries()) + i] = 2;
  const DeviceTables lists(t);
  const DeviceTrees trees(3, 9, 8);
  const DeviceArray<int32_t> budgets(std::vector<int32_t>{8, 8, 9});
  const DeviceArray<uint32_t> status(no_status(3));
  device::build_best_first({}, lists.view(), 3, {budgets.data()}, trees.view(), status.data());
  CHECK_EQUAL(status.to_host()[0] & device::kNotANumber, device::kNotANumber + 0u);
  CHECK_EQUAL(status.to_host()[1], device::kOutOfBounds + 0u);
  CHECK_EQUAL(status.to_host()[2], device::kOutOfBounds + 0u);
}

void the_root_takes_its_token() {
  std::mt19937 random(9);
  const DeviceTables lists(Tables::random(random, SourceKind::kMarginals, 2, 2, 1, 3));
  const DeviceTrees trees(2, 4, 3);
  const DeviceArray<int32_t> budgets(std::vector<int32_t>{0, 3});
  const DeviceArray<int32_t> root(std::vector<int32_t>{17, 18});
  const DeviceArray<uint32_t> status(no_status(2));
  device::build_best_first({}, lists.view(), 2, {budgets.data(), root.data()}, trees.view(),
                           status.data());
  std::vector<int32_t> token(8);
  copy_to_host(token.data(), trees.view().token, 32);
  CHECK_EQUAL(token[0], 17);
  CHECK_EQUAL(token[4], 18);
}

void wrong_arguments_are_refused() {
  const auto call = [](device::ListSource lists, int32_t max_nodes, int32_t max_depth) {
    device::Trees trees;
    trees.batch = 1;
    trees.max_nodes = max_nodes;
    trees.max_draws = 1024;
    device::build_best_first({}, lists, max_depth, {}, trees, nullptr);
  };
  const device::ListSource good{SourceKind::kMarginals, 4, 1, 8};
  CHECK_THROWS(InvalidArgument, call(good, 0, 4));
  CHECK_THROWS(InvalidArgument, call(good, 1026, 4));
  CHECK_THROWS(InvalidArgument, call(good, 8, -1));
  CHECK_THROWS(InvalidArgument, call({SourceKind::kExpander, 4, 1, 8}, 8, 4));
  CHECK_THROWS(InvalidArgument, call({SourceKind::kTrie, 4, 1, 8}, 8, 4));
  CHECK_THROWS(InvalidArgument, call({SourceKind::kTransitions, 4, 1, 8}, 8, 4));
  CHECK_THROWS(InvalidArgument, call({SourceKind::kMarginals, 4, 1, 1025}, 8, 4));
}

}  // namespace

int main() {
  if (!has_device()) return kSkipped;
  equals_the_heap();
  equals_the_heap_with_large_budgets();
  equal_scores_are_cut_by_the_total_order();
  what_is_wrong_is_reported();
  the_root_takes_its_token();
  wrong_arguments_are_refused();
  return 0;
}
