// SPDX-License-Identifier: Apache-2.0
// Fixed shapes on the device: the frontiers, trees, draws and laws of the CPU's builders, for all
// proposals, and for rollouts and delayed trees, which share their draws.
#include "device/building.h"

namespace {

using namespace treespec;        // NOLINT
using namespace treespec::test;  // NOLINT

/// One side of a comparison: what the CPU grows, and how the device is driven.
struct Recipe {
  const char* name;
  BuilderOptions cpu;
  Proposal proposal = Proposal::kDeterministic;
  std::vector<int32_t> map;  // of shapes
  bool whole_levels = false;
  bool is_shape = true;
  device::PathOptions paths;
  bool own_lengths = false;  // every sequence has its own, within num_paths
  int32_t max_depth = INT32_MAX;
};

std::vector<int32_t> random_map(std::mt19937& random, int32_t most) {
  std::vector<int32_t> parent;
  const int32_t size = 1 + below(random, most), reach = 1 + below(random, 12);
  for (int32_t i = 0; i < size; ++i) parent.push_back(std::max(0, i - below(random, reach)));
  return parent;
}

/// The map of an expansion vector, level by level.
std::vector<int32_t> level_map(const std::vector<int32_t>& widths) {
  std::vector<int32_t> parent, level{0};
  int32_t next = 1;
  for (const int32_t width : widths) {
    std::vector<int32_t> born;
    for (const int32_t node : level) {
      for (int32_t k = 0; k < width; ++k) {
        parent.push_back(node);
        born.push_back(next++);
      }
    }
    level = born;
  }
  return parent;
}

std::string word(Proposal proposal) { return std::string(proposal_name(proposal)); }

Recipe shape_recipe(std::mt19937& random) {
  constexpr Proposal kProposals[] = {Proposal::kDeterministic, Proposal::kIid,
                                     Proposal::kWithoutReplacement, Proposal::kTopPlusOne};
  Recipe r;
  r.proposal = kProposals[below(random, 4)];
  if (below(random, 2) == 0) r.max_depth = below(random, 7);
  if (r.proposal == Proposal::kTopPlusOne) {
    r.name = "top_plus_one";
    r.map = level_map({3, 2, 1, 1});
    r.whole_levels = true;
  } else if (r.proposal == Proposal::kIid || below(random, 2) == 0) {
    r.name = "kary";
    r.map = level_map({1, 1, 3, 1, 1, 1, 1, 1});
    r.whole_levels = true;
  } else {
    r.name = "sequoia";
    r.map = random_map(random, 40);
    r.cpu["growth_map"] = std::vector<int64_t>(r.map.begin(), r.map.end());
  }
  if (r.proposal != Proposal::kTopPlusOne) r.cpu["proposal"] = word(r.proposal);
  if (r.max_depth < INT32_MAX) r.cpu["max_depth"] = int64_t{r.max_depth};
  return r;
}

/// Wide levels: every child is asked for more than a warp has lanes.
Recipe wide_recipe(std::mt19937& random) {
  Recipe r;
  const std::vector<int32_t> widths{1 + below(random, 50), 1 + below(random, 10)};
  r.name = "kary";
  r.map = level_map(widths);
  r.proposal = below(random, 2) == 0 ? Proposal::kIid : Proposal::kWithoutReplacement;
  r.cpu["expansion"] = std::vector<int64_t>(widths.begin(), widths.end());
  r.cpu["proposal"] = word(r.proposal);
  return r;
}

Recipe path_recipe(std::mt19937& random) {
  Recipe r;
  r.is_shape = false;
  r.proposal = Proposal::kIid;
  if (below(random, 2) == 0) r.max_depth = below(random, 9);
  r.name = "delayed";
  if (below(random, 3) == 0) {
    r.name = "rollouts";
    r.paths = {4, 0, -1, true, r.max_depth};  // the default number of paths may be cut
  } else {
    r.paths.num_paths = 1 + below(random, 6);
    r.paths.max_depth = r.max_depth;
    r.cpu["num_paths"] = int64_t{r.paths.num_paths};
    if (below(random, 2) == 0) r.cpu["trunk"] = int64_t{r.paths.trunk = below(random, 4)};
    if (below(random, 2) == 0) r.cpu["branch"] = int64_t{r.paths.branch = below(random, 4)};
  }
  if (r.max_depth < INT32_MAX) r.cpu["max_depth"] = int64_t{r.max_depth};
  return r;
}

/// Lengths of a sequence that its budget holds; none if all have the same.
std::vector<int32_t> random_lengths(std::mt19937& random, const Recipe& r, int32_t budget) {
  if (!r.own_lengths) return {};
  const int32_t num_paths = 1 + below(random, r.paths.num_paths);
  const int32_t trunk = below(random, std::min(budget, 5) + 1);
  return {num_paths, trunk, below(random, std::min((budget - trunk) / num_paths, 5) + 1)};
}

/// Those of the CPU's builder for a sequence.
BuilderOptions options_of(const Recipe& r, const std::vector<int32_t>& lengths) {
  BuilderOptions out = r.cpu;
  if (lengths.empty()) return out;
  out["num_paths"] = int64_t{lengths[0]};
  out["trunk"] = int64_t{lengths[1]};
  out["branch"] = int64_t{lengths[2]};
  return out;
}

/// Both sides, level by level.
void check_batch(std::mt19937& random, const Recipe& r, int32_t most, int32_t width) {
  const int32_t batch = 1 + below(random, 3);
  constexpr SourceKind kKinds[] = {SourceKind::kMarginals, SourceKind::kTransitions,
                                   SourceKind::kExpander};
  const SourceKind kind = kKinds[below(random, 3)];
  const int32_t room = std::max(most, r.paths.num_paths);
  const int32_t table_depth = kind == SourceKind::kExpander ? 1 : 1 + below(random, 6);
  const int32_t num_rows = kind == SourceKind::kMarginals     ? 1
                           : kind == SourceKind::kTransitions ? 1 + below(random, 4)
                                                              : room;
  const int32_t source_depth = kind == SourceKind::kExpander ? INT32_MAX : table_depth;
  Tables tables = Tables::random(random, kind, batch, table_depth, num_rows, width);
  std::vector<int32_t> budget = random_budgets(random, batch, most);
  const std::vector<RoundKey> keys = random_keys(random, batch);
  std::vector<std::unique_ptr<TreeGrowth>> growth;
  std::vector<int32_t> all_lengths;
  for (int32_t b = 0; b < batch; ++b) {
    const auto i = static_cast<size_t>(b);
    const std::vector<int32_t> own = random_lengths(random, r, budget[i]);
    all_lengths.insert(all_lengths.end(), own.begin(), own.end());
    const auto builder = make_builder(r.name, options_of(r, own));
    try {
      growth.push_back(builder->begin(budget[i], source_depth, keys[i]));
    } catch (const InvalidArgument&) {
      budget[i] = most;  // a budget that cannot hold what is asked for
      growth.push_back(builder->begin(most, source_depth, keys[i]));
    }
  }
  const DeviceTrees trees(batch, most + 1, most);
  const DeviceFrontier frontier(batch, room);
  const DeviceLaws laws(batch, most + 1, width);
  const DeviceArray<int32_t> budgets(budget), map(r.map);
  const DeviceArray<RoundKey> key(keys);
  const DeviceArray<uint32_t> status(no_status(batch));
  const device::BuildRequest request{budgets.data()};
  const auto places = static_cast<int32_t>(r.map.size());
  const device::ShapeSource shape{places, map.data(), std::min(r.max_depth, source_depth),
                                  r.whole_levels};
  const DeviceArray<int32_t> lengths(all_lengths);
  device::PathOptions paths = r.paths;
  paths.max_depth = std::min(r.max_depth, source_depth);
  if (r.own_lengths) paths.lengths = lengths.data();
  const DeviceArray<char> workspace(
      r.is_shape ? device::shape_workspace_bytes(batch, most + 1, places, width, r.proposal)
                 : device::paths_workspace_bytes(batch, most + 1, width));
  if (r.is_shape) {
    device::begin_shape({}, shape, width, r.proposal, request, trees.view(), workspace.data(),
                        frontier.view(), status.data());
  } else {
    device::begin_paths({}, paths, width, request, trees.view(), workspace.data(), frontier.view(),
                        status.data());
  }
  for (bool growing = true; growing;) {
    growing = false;
    if (kind == SourceKind::kExpander) {
      tables = Tables::random(random, kind, batch, table_depth, num_rows, width);
    }
    for (int32_t b = 0; b < batch; ++b) {
      const auto wanted = growth[static_cast<size_t>(b)]->frontier();
      frontier.check_equal_to(wanted, b);
      if (wanted.empty()) continue;
      growing = true;
      growth[static_cast<size_t>(b)]->supply(rows_of(tables, b, wanted));
    }
    const DeviceTables lists(tables);
    if (r.is_shape) {
      device::grow_shape({}, shape, {r.proposal, key.data()}, lists.view(), trees.view(),
                         workspace.data(), frontier.view(), status.data());
    } else {
      device::grow_paths({}, paths, key.data(), lists.view(), trees.view(), workspace.data(),
                         frontier.view(), status.data());
    }
  }
  if (r.is_shape) {
    device::finish_shape({}, shape, width, r.proposal, request, workspace.data(), trees.view(),
                         laws.view());
  } else {
    device::finish_paths({}, width, request, workspace.data(), trees.view(), laws.view());
  }
  for (int32_t b = 0; b < batch; ++b) {
    CHECK_EQUAL(status.to_host()[static_cast<size_t>(b)], 0u);
    const TokenTree tree = growth[static_cast<size_t>(b)]->finish();
    trees.check_equal_to(tree, b);
    if (r.proposal != Proposal::kDeterministic) laws.check_equal_to(tree, b);
  }
}

void shapes_equal_the_cpu() {
  std::mt19937 random(21);
  for (int i = 0; i < num_cases(300); ++i) {
    set_order(i % num_orders());
    check_batch(random, shape_recipe(random), below(random, 45), 1 + below(random, 20));
  }
}

void wide_draws_equal_the_cpu() {
  std::mt19937 random(22);
  for (int i = 0; i < num_cases(30); ++i) {
    set_order(i % num_orders());
    check_batch(random, wide_recipe(random), 560, 1 + below(random, i % 2 == 0 ? 1024 : 60));
  }
}

void paths_equal_the_cpu() {
  std::mt19937 random(23);
  for (int i = 0; i < num_cases(300); ++i) {
    set_order(i % num_orders());
    check_batch(random, path_recipe(random), 25 + below(random, 30), 1 + below(random, 20));
  }
}

void paths_of_own_lengths_equal_the_cpu() {
  std::mt19937 random(25);
  for (int i = 0; i < 300; ++i) {
    set_order(i % num_orders());
    Recipe r;
    r.name = "delayed";
    r.is_shape = false;
    r.own_lengths = true;
    r.proposal = Proposal::kIid;
    if (below(random, 2) == 0) r.max_depth = below(random, 9);
    if (r.max_depth < INT32_MAX) r.cpu["max_depth"] = int64_t{r.max_depth};
    r.paths = {1 + below(random, 6), 2, 7, false, r.max_depth};
    check_batch(random, r, below(random, 30), 1 + below(random, 20));
  }
}

/// Every sequence has lengths of its own that cannot be had, but for the last.
void bad_lengths_grow_nothing() {
  const std::vector<std::vector<int32_t>> bad{
      {0, 1, 1}, {3, 0, 1}, {1, -1, 1}, {1, 1, -1}, {2, 0, 3}, {1, 5, 1}, {2, INT32_MAX, INT32_MAX},
      {2, 1, 2}};
  std::vector<int32_t> flat;
  for (const auto& own : bad) flat.insert(flat.end(), own.begin(), own.end());
  const auto batch = static_cast<int32_t>(bad.size());
  const DeviceTrees trees(batch, 6, 5);
  const DeviceFrontier frontier(batch, 4);
  const DeviceArray<uint32_t> status(no_status(batch));
  const DeviceArray<char> room(device::paths_workspace_bytes(batch, 6, 3));
  const DeviceArray<int32_t> budgets(std::vector<int32_t>(bad.size(), 5)), lengths(flat);
  device::PathOptions paths;
  paths.num_paths = 2;
  paths.lengths = lengths.data();
  device::begin_paths({}, paths, 3, {budgets.data()}, trees.view(), room.data(), frontier.view(),
                      status.data());
  for (int32_t b = 0; b < batch; ++b) {
    const bool fits = b + 1 == batch;
    const FrontierNode root{0, -1, 0, 0, 0};
    frontier.check_equal_to({&root, fits ? 1 : 0}, b);
    CHECK_EQUAL(status.to_host()[static_cast<size_t>(b)], fits ? 0u : device::kOutOfBounds + 0u);
  }
}

void what_is_wrong_is_reported() {
  std::mt19937 random(24);
  Tables t = Tables::random(random, SourceKind::kExpander, 2, 1, 4, 3);
  std::fill(t.logprob.begin(), t.logprob.end(), -1.0f);
  t.logprob[1] = NAN;
  const DeviceTables lists(t);
  const DeviceTrees trees(2, 6, 5);
  const DeviceFrontier frontier(2, 4);
  const DeviceArray<int32_t> budgets(std::vector<int32_t>{5, 6});
  const DeviceArray<int32_t> map(std::vector<int32_t>{0, 0, 0}), torn(std::vector<int32_t>{0, 2});
  const DeviceArray<uint32_t> status(no_status(2));
  const DeviceArray<char> workspace(
      device::shape_workspace_bytes(2, 6, 3, 3, Proposal::kDeterministic));
  const auto begin = [&](const device::ShapeSource& shape) {
    device::begin_shape({}, shape, 3, Proposal::kDeterministic, {budgets.data()}, trees.view(),
                        workspace.data(), frontier.view(), status.data());
  };
  const device::ShapeSource shape{3, map.data()};
  begin(shape);
  CHECK_EQUAL(status.to_host()[1], device::kOutOfBounds + 0u);
  device::grow_shape({}, shape, {}, lists.view(), trees.view(), workspace.data(), frontier.view(),
                     status.data());
  CHECK_EQUAL(status.to_host()[0], device::kNotANumber + 0u);
  begin({2, torn.data()});
  CHECK_EQUAL(status.to_host()[0], device::kNotANumber + device::kBadTree + 0u);

  const DeviceArray<uint32_t> fresh(no_status(2));
  const DeviceArray<char> room(device::paths_workspace_bytes(2, 6, 3));
  const DeviceArray<int32_t> small(std::vector<int32_t>{5, 3});
  device::PathOptions paths;
  paths.branch = 2;
  paths.num_paths = 2;
  device::begin_paths({}, paths, 3, {small.data()}, trees.view(), room.data(), frontier.view(),
                      fresh.data());
  CHECK_EQUAL(fresh.to_host()[0], 0u);
  CHECK_EQUAL(fresh.to_host()[1], device::kOutOfBounds + 0u);
}

void wrong_arguments_are_refused() {
  device::Trees trees;
  trees.batch = 1;
  trees.max_nodes = 9;
  trees.max_draws = 8;
  device::Frontier frontier;
  frontier.max_nodes = 2;
  const auto shape = [&](int32_t places) {
    device::begin_shape({}, {places, nullptr}, 4, Proposal::kIid, {}, trees, nullptr, frontier,
                        nullptr);
  };
  const auto paths = [&](int32_t num_paths) {
    device::PathOptions options;
    options.num_paths = num_paths;
    device::begin_paths({}, options, 4, {}, trees, nullptr, frontier, nullptr);
  };
  CHECK_THROWS(InvalidArgument, shape(-1));
  CHECK_THROWS(InvalidArgument, shape(1025));
  CHECK_THROWS(InvalidArgument, paths(0));
  CHECK_THROWS(InvalidArgument, paths(3));
  device::PathOptions rollouts;
  rollouts.num_paths = 2;
  rollouts.rollouts = true;
  rollouts.lengths = &rollouts.num_paths;
  CHECK_THROWS(InvalidArgument,
               device::begin_paths({}, rollouts, 4, {}, trees, nullptr, frontier, nullptr));
  CHECK_THROWS(InvalidArgument, device::grow_shape({}, {}, {Proposal::kIid, nullptr},
                                                   {SourceKind::kMarginals, 4, 1, 8}, trees,
                                                   nullptr, frontier, nullptr));
}

}  // namespace

int main() {
  if (!has_device()) return kSkipped;
  shapes_equal_the_cpu();
  paths_equal_the_cpu();
  paths_of_own_lengths_equal_the_cpu();
  bad_lengths_grow_nothing();
  wide_draws_equal_the_cpu();
  what_is_wrong_is_reported();
  wrong_arguments_are_refused();
  return 0;
}
