// SPDX-License-Identifier: Apache-2.0
// The layered builders on the device ask for the very frontiers of the CPU's opt_tree and eagle2,
// layer by layer, and end with the very trees.
#include "device/building.h"

namespace {

using namespace treespec;        // NOLINT
using namespace treespec::test;  // NOLINT

struct Recipe {
  const char* name;
  BuilderOptions cpu;
  device::LayerOptions device;
};

Recipe random_recipe(std::mt19937& random) {
  Recipe r;
  const int32_t depth = below(random, 8);
  r.device.max_depth = depth;
  r.cpu["max_depth"] = int64_t{depth};
  r.name = "opt_tree";
  if (below(random, 2) == 0) {
    if (below(random, 2) == 0) {
      constexpr double kThresholds[] = {0.05, 0.4, 1.0, 3.0};
      r.device.threshold = kThresholds[below(random, 4)];
      r.cpu["threshold"] = r.device.threshold;
    }
    if (below(random, 2) == 0) {
      constexpr double kFloors[] = {1e-6, 0.003, 0.1, 0.5};
      r.device.floor = kFloors[below(random, 4)];
      r.cpu["floor"] = r.device.floor;
    }
    return r;
  }
  r.name = "eagle2";
  r.device.width = 1 + below(random, 12);
  r.device.max_calls = depth;
  r.cpu["width"] = int64_t{r.device.width};
  const int32_t kind = below(random, 3);
  if (kind == 1) {
    constexpr double kRatios[] = {0.01, 0.3, 1.0};
    r.device.width_ratio = kRatios[below(random, 3)];
    r.cpu["width_ratio"] = r.device.width_ratio;
  }
  r.device.constant_growth = kind == 2;
  r.cpu["growth"] = std::string(kind == 2 ? "constant" : "layer");
  return r;
}

struct Size {
  int32_t most, most_width;
};

void check_growth(std::mt19937& random, const Recipe& recipe, Tables tables, int32_t most,
                  int32_t room, bool new_rows);

/// A random batch, on both sides.
void check_batch(std::mt19937& random, const Recipe& recipe, const Size& size) {
  const int32_t batch = 1 + below(random, 3), width = 1 + below(random, size.most_width);
  constexpr SourceKind kKinds[] = {SourceKind::kMarginals, SourceKind::kTransitions,
                                   SourceKind::kExpander};
  const SourceKind kind = kKinds[below(random, 3)];
  const bool wide = recipe.device.width_ratio > 0.0 || below(random, 3) == 0;
  const int32_t room = std::max(1, wide ? size.most : std::min(size.most, recipe.device.width));
  const int32_t table_depth = kind == SourceKind::kExpander ? 1 : 1 + below(random, 6);
  const int32_t num_rows = kind == SourceKind::kMarginals     ? 1
                           : kind == SourceKind::kTransitions ? 1 + below(random, 4)
                                                              : room;
  const Tables tables = Tables::random(random, kind, batch, table_depth, num_rows, width);
  check_growth(random, recipe, tables, size.most, room, /*new_rows=*/true);
}

/// Compares after every call; the rows of an expander are other ones in every call if wanted.
void check_growth(std::mt19937& random, const Recipe& recipe, Tables tables, int32_t most,
                  int32_t room, bool new_rows) {
  const DeviceScores scores(random);
  BuilderOptions options = recipe.cpu;
  scores.add_to(options);
  const SourceKind kind = tables.kind;
  const int32_t batch = tables.batch;
  const std::vector<int32_t> budget = random_budgets(random, batch, most);
  const auto builder = make_builder(recipe.name, options);
  std::vector<std::unique_ptr<TreeGrowth>> growth;
  for (const int32_t n : budget) {
    growth.push_back(
        builder->begin(n, kind == SourceKind::kExpander ? INT32_MAX : tables.depth, {}));
  }
  const DeviceTrees trees(batch, most + 1, most);
  const DeviceFrontier frontier(batch, room);
  const DeviceArray<int32_t> budgets(budget);
  const DeviceArray<uint32_t> status(no_status(batch));
  const DeviceArray<char> workspace(device::layers_workspace_bytes(batch, most + 1));
  const device::BuildRequest request{budgets.data()};
  device::begin_layers({}, recipe.device, request, trees.view(), workspace.data(), frontier.view(),
                       status.data());
  for (bool growing = true; growing;) {
    growing = false;
    if (kind == SourceKind::kExpander && new_rows) {
      tables = Tables::random(random, kind, batch, tables.depth, tables.num_rows, tables.width);
    }
    for (int32_t b = 0; b < batch; ++b) {
      const auto wanted = growth[static_cast<size_t>(b)]->frontier();
      frontier.check_equal_to(wanted, b);
      if (wanted.empty()) continue;
      growing = true;
      growth[static_cast<size_t>(b)]->supply(rows_of(tables, b, wanted));
    }
    DeviceTables lists(tables);
    lists.score(scores.rule(), batch);
    device::grow_layer({}, recipe.device, lists.view(), trees.view(), workspace.data(),
                       frontier.view(), status.data());
  }
  device::finish_layers({}, request, workspace.data(), trees.view());
  for (int32_t b = 0; b < batch; ++b) {
    CHECK_EQUAL(status.to_host()[static_cast<size_t>(b)], 0u);
    trees.check_equal_to(growth[static_cast<size_t>(b)]->finish(), b);
  }
}

void equals_the_cpu_layer_by_layer() {
  std::mt19937 random(11);
  for (int i = 0; i < num_cases(500); ++i) {
    set_order(i % num_orders());
    check_batch(random, random_recipe(random), {below(random, 60), 24});
  }
}

void equals_the_cpu_with_large_budgets() {
  std::mt19937 random(12);
  for (int i = 0; i < num_cases(16); ++i) {
    set_order(i % num_orders());
    const int32_t most = i % 3 == 0 ? device::kMostDrafted : 100 + below(random, 900);
    check_batch(random, random_recipe(random), {most, i % 2 == 0 ? 1024 : 60});
  }
}

/// Layers of nothing but ties, more than a block has room for: the place of the parent decides.
void equal_scores_are_cut_by_the_total_order() {
  std::mt19937 random(14);
  for (const float logprob : {-1.0f, 0.0f}) {
    for (const int32_t width : {90, 600}) {
      Tables t = Tables::random(random, SourceKind::kExpander, 1, 1, 1000, width);
      for (size_t i = 0; i < t.logprob.size(); ++i) {
        t.logprob[i] = logprob;
        t.token[i] = static_cast<int32_t>(3 * (i % static_cast<size_t>(width)));
      }
      Recipe recipe{"opt_tree", {{"max_depth", int64_t{4}}}, {}};
      recipe.device.max_depth = 4;
      for (int i = 0; i < num_cases(3); ++i) {
        check_growth(random, recipe, t, 1000, 1000, false);
      }
    }
  }
}

void what_is_wrong_is_reported() {
  std::mt19937 random(13);
  Tables t = Tables::random(random, SourceKind::kExpander, 2, 1, 4, 3);
  std::fill(t.logprob.begin(), t.logprob.end(), -1.0f);
  t.logprob[1] = NAN;
  const DeviceTables lists(t);
  const DeviceTrees trees(2, 5, 4);
  const DeviceFrontier frontier(2, 4);
  const DeviceArray<int32_t> budgets(std::vector<int32_t>{4, 5});
  const DeviceArray<uint32_t> status(no_status(2));
  const DeviceArray<char> workspace(device::layers_workspace_bytes(2, 5));
  device::begin_layers({}, {}, {budgets.data()}, trees.view(), workspace.data(), frontier.view(),
                       status.data());
  device::grow_layer({}, {}, lists.view(), trees.view(), workspace.data(), frontier.view(),
                     status.data());
  CHECK_EQUAL(status.to_host()[0], device::kNotANumber + 0u);
  CHECK_EQUAL(status.to_host()[1], device::kOutOfBounds + 0u);
}

void wrong_arguments_are_refused() {
  const auto begin = [](const device::LayerOptions& options, int32_t max_nodes, int32_t room) {
    device::Trees trees;
    trees.batch = 1;
    trees.max_nodes = max_nodes;
    trees.max_draws = 1024;
    device::Frontier frontier;
    frontier.max_nodes = room;
    device::begin_layers({}, options, {}, trees, nullptr, frontier, nullptr);
  };
  device::LayerOptions eagle;
  eagle.width = 10;
  CHECK_THROWS(InvalidArgument, begin(eagle, 1026, 10));
  CHECK_THROWS(InvalidArgument, begin(eagle, 65, 9));
  CHECK_THROWS(InvalidArgument, begin({}, 65, 63));
  device::LayerOptions talon = eagle;
  talon.width_ratio = 0.1;
  CHECK_THROWS(InvalidArgument, begin(talon, 65, 63));
  device::LayerOptions floored = talon;
  floored.floor = 0.1;
  CHECK_THROWS(InvalidArgument, begin(floored, 65, 64));
  floored = {};
  floored.floor = 1.0;
  CHECK_THROWS(InvalidArgument, begin(floored, 65, 64));
  talon.constant_growth = true;
  CHECK_THROWS(InvalidArgument, begin(talon, 65, 64));
}

}  // namespace

int main() {
  if (!has_device()) return kSkipped;
  equals_the_cpu_layer_by_layer();
  equals_the_cpu_with_large_budgets();
  equal_scores_are_cut_by_the_total_order();
  what_is_wrong_is_reported();
  wrong_arguments_are_refused();
  return 0;
}
