// SPDX-License-Identifier: Apache-2.0
// dyspec and dyspec_threshold on the device: the frontiers, trees, draws and laws of the CPU.
#include "device/building.h"

namespace {

using namespace treespec;        // NOLINT
using namespace treespec::test;  // NOLINT

/// Grows a batch on both sides, and compares after every call. Returns how many sequences the
/// device had no room for; the others are equal.
int check_batch(std::mt19937& random, int32_t most, int32_t width) {
  const int32_t batch = 1 + below(random, 3);
  constexpr SourceKind kKinds[] = {SourceKind::kMarginals, SourceKind::kTransitions,
                                   SourceKind::kExpander};
  const SourceKind kind = kKinds[below(random, 3)];
  const int32_t room = 2 * most + 8;
  const int32_t table_depth = kind == SourceKind::kExpander ? 1 : 1 + below(random, 6);
  const int32_t num_rows = kind == SourceKind::kMarginals     ? 1
                           : kind == SourceKind::kTransitions ? 1 + below(random, 4)
                                                              : room;
  const int32_t source_depth = kind == SourceKind::kExpander ? INT32_MAX : table_depth;
  Tables tables = Tables::random(random, kind, batch, table_depth, num_rows, width);
  const std::vector<int32_t> budget = random_budgets(random, batch, most);
  const std::vector<RoundKey> keys = random_keys(random, batch);
  const int32_t max_depth = below(random, 3) == 0 ? below(random, 5) : 12;
  const DeviceCalibration calibration(random, below(random, 2) == 0 ? 0 : 1 + below(random, 6));
  device::SlotOptions options{std::min(max_depth, source_depth), 0.0, calibration.view()};
  const char* name = "dyspec";
  BuilderOptions cpu{{"max_depth", int64_t{max_depth}}};
  if (options.calibration.num_points > 0) cpu["calibration"] = calibration.option();
  if (below(random, 2) == 0) {
    name = "dyspec_threshold";
    options.threshold = below(random, 2) == 0 ? -1.0 : 0.03;
    if (options.threshold > 0.0) cpu["threshold"] = options.threshold;
  }
  const auto builder = make_builder(name, cpu);
  std::vector<std::unique_ptr<TreeGrowth>> growth;
  for (int32_t b = 0; b < batch; ++b) {
    const auto i = static_cast<size_t>(b);
    growth.push_back(builder->begin(budget[i], source_depth, keys[i]));
  }
  const DeviceTrees trees(batch, most + 1, most);
  const DeviceFrontier frontier(batch, room);
  const DeviceLaws laws(batch, most + 1, width);
  const DeviceArray<int32_t> budgets(budget);
  const DeviceArray<RoundKey> key(keys);
  const DeviceArray<uint32_t> status(no_status(batch));
  const device::BuildRequest request{budgets.data()};
  const DeviceArray<char> workspace(device::slots_workspace_bytes(batch, most + 1, width));
  device::begin_slots({}, options, width, request, trees.view(), workspace.data(), frontier.view(),
                      status.data());
  const auto ended = [&](int32_t b) {
    return status.to_host()[static_cast<size_t>(b)] == device::kOutOfBounds;
  };
  for (bool growing = true; growing;) {
    growing = false;
    if (kind == SourceKind::kExpander) {
      tables = Tables::random(random, kind, batch, table_depth, num_rows, width);
    }
    for (int32_t b = 0; b < batch; ++b) {
      if (ended(b)) continue;
      const auto wanted = growth[static_cast<size_t>(b)]->frontier();
      frontier.check_equal_to(wanted, b);
      if (wanted.empty()) continue;
      growing = true;
      growth[static_cast<size_t>(b)]->supply(rows_of(tables, b, wanted));
    }
    const DeviceTables lists(tables);
    device::grow_slots({}, options, key.data(), lists.view(), trees.view(), workspace.data(),
                       frontier.view(), status.data());
  }
  device::finish_slots({}, width, request, workspace.data(), trees.view(), laws.view(),
                       status.data());
  int no_room = 0;
  for (int32_t b = 0; b < batch; ++b) {
    if (ended(b)) {
      ++no_room;
      continue;
    }
    CHECK_EQUAL(status.to_host()[static_cast<size_t>(b)], 0u);
    const TokenTree tree = growth[static_cast<size_t>(b)]->finish();
    trees.check_equal_to(tree, b);
    laws.check_equal_to(tree, b);
  }
  return no_room;
}

void equals_the_cpu() {
  std::mt19937 random(31);
  int no_room = 0;
  for (int i = 0; i < num_cases(250); ++i) {
    set_order(i % num_orders());
    no_room += check_batch(random, below(random, 50), 1 + below(random, 24));
  }
  CHECK(no_room < num_cases(30));  // of twice as many as batches, a ninth all ties
}

void equals_the_cpu_with_large_budgets() {
  std::mt19937 random(32);
  for (int i = 0; i < num_cases(6); ++i) {
    set_order(i % num_orders());
    check_batch(random, 200 + below(random, 300), i % 2 == 0 ? 300 : 40);
  }
}

}  // namespace

int main() {
  if (!has_device()) return kSkipped;
  equals_the_cpu();
  equals_the_cpu_with_large_budgets();
  return 0;
}
