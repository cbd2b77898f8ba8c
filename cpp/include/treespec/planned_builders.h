// SPDX-License-Identifier: Apache-2.0
// PlannedBuilders: the builders that play the plans of a BudgetRule.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "treespec/budget_rule.h"
#include "treespec/tree_builder.h"

namespace treespec {

/// One named builder with the prices of a plan as its options, and a chain of the same kind of
/// draws. Prices are rounded to quarters of a factor of two, so that few builders are made. One
/// object may serve many threads.
class PlannedBuilders {
 public:
  /// Options that are given are kept: a threshold or floor is not priced then, and a `max_depth` is
  /// the deepest tree. Throws as make_builder does.
  PlannedBuilders(std::string_view name, const BuilderOptions& options, int32_t max_nodes);

  const TreeBuilder& tree() const { return *tree_; }
  /// Whether trees come as the best nodes in order of falling score (BudgetOptions::ranked_trees).
  bool ranked() const { return ranked_; }
  /// No deeper tree.
  int32_t max_depth() const { return max_depth_; }
  /// The builder for a round that is not plain.
  std::shared_ptr<const TreeBuilder> at(const RoundPlan& plan) const;
  /// The name of that builder.
  std::string_view name(const RoundPlan& plan) const;

 private:
  std::string name_;
  BuilderOptions options_;
  int32_t max_depth_;
  bool ranked_, prices_threshold_ = false, prices_floor_ = false;
  std::shared_ptr<const TreeBuilder> tree_, chain_;
  mutable std::mutex mutex_;
  mutable std::map<std::pair<double, double>, std::shared_ptr<const TreeBuilder>> priced_;
};

}  // namespace treespec
