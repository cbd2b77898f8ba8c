// SPDX-License-Identifier: Apache-2.0
// GrowthMap: the frozen shape of a draft tree, and the shape of largest expected acceptance.
// Source: Chen et al., "Sequoia", 2024, arXiv 2402.12374 (tree construction); the heap is ours.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace treespec {

/// `table[d][r]`: probability that the child of rank r, and no sibling, is accepted below an
/// accepted node of depth d. Depths beyond the table use its last row, ranks beyond a row are 0.
using AcceptanceTable = std::vector<std::vector<double>>;

/// A tree without tokens. The rank of a node is its place among the children of its parent by id.
struct GrowthMap {
  std::vector<int32_t> parent;  ///< [n] in [0, i]: parent of drafted node i + 1; node 0 is the root

  int32_t num_nodes() const { return static_cast<int32_t>(parent.size()); }  ///< root not counted
  std::vector<int32_t> depths() const;  ///< [n + 1], the root first
};

/// Throws InvalidArgument, in the name of `who`, for a parent outside [0, i].
void check_growth_map(std::string_view who, const GrowthMap& map);
/// Throws InvalidArgument, naming `who` and `name`, unless there are rows, each with entries in
/// [0, 1] that sum to at most 1 (+ 1e-6).
void check_acceptance(std::string_view who, std::string_view name, const AcceptanceTable& table);

/// Isotonic regression: the non-increasing sequence nearest to `values` in the weighted square sum,
/// by pooling adjacent violators from left to right. No weights: all 1.
std::vector<double> non_increasing_fit(const std::vector<double>& values,
                                       const std::vector<double>& weights = {});

/// The map of at most `num_nodes` drafted nodes with the largest `expected_tokens`, for rows that
/// were smoothed by `non_increasing_fit`. Ids are in order of falling value, so that the first n
/// nodes are the optimum for n. Nodes of value 0 are never taken. O(N log N).
/// Throws InvalidArgument for a bad table, or `num_nodes` outside [0, kMostMapNodes].
GrowthMap optimal_growth_map(const AcceptanceTable& table, int32_t num_nodes,
                             int32_t max_depth = INT32_MAX);
/// The same for the table as it is, rising rows included, by the dynamic program of the paper. Ids
/// are in order of depth. O(N^2 D W) for D levels and W ranks. Throws as above.
GrowthMap optimal_growth_map_dp(const AcceptanceTable& table, int32_t num_nodes,
                                int32_t max_depth = INT32_MAX);

/// [n + 1]: the probability that each node is accepted, 1 for the root; their sum is the expected
/// tokens of a round. Throws InvalidArgument for a bad map or table.
std::vector<double> node_acceptance(const GrowthMap& map, const AcceptanceTable& table);
double expected_tokens(const GrowthMap& map, const AcceptanceTable& table);

/// A map is laid out in memory: absurd budgets are refused.
constexpr int32_t kMostMapNodes = 1 << 20;

/// Measured on the bundled demo pair (`treespec tune`), for pairs nobody has measured: acceptance
/// by rank of draws without replacement at temperature 0.6.
const AcceptanceTable& demo_acceptance();
/// The same at temperature 0: how often the target's choice is the drafter's r-th, by depth.
const AcceptanceTable& demo_accuracy();

}  // namespace treespec
