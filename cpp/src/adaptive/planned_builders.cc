// SPDX-License-Identifier: Apache-2.0
#include "treespec/planned_builders.h"

#include <algorithm>
#include <cmath>

namespace treespec {
namespace {

constexpr std::string_view kRanked[] = {"opt_tree", "dtree", "eagle2", "trie"};
constexpr double kStepsPerDouble = 4.0;

double rounded(double price) {
  if (price <= 0.0) return 0.0;
  return std::exp2(std::round(std::log2(price) * kStepsPerDouble) / kStepsPerDouble);
}

int32_t given_depth(const BuilderOptions& options) {
  const auto found = options.find("max_depth");
  if (found == options.end()) return INT32_MAX;
  const auto* depth = std::get_if<int64_t>(&found->second);
  return depth == nullptr ? INT32_MAX
                          : static_cast<int32_t>(std::clamp<int64_t>(*depth, 1, INT32_MAX));
}

}  // namespace

PlannedBuilders::PlannedBuilders(std::string_view name, const BuilderOptions& options,
                                 int32_t max_nodes)
    : name_(name),
      options_(options),
      max_depth_(given_depth(options)),
      ranked_(std::find(std::begin(kRanked), std::end(kRanked), name) != std::end(kRanked)) {
  if (name == "opt_tree") {
    // Its own default is for trees that no price bounds.
    options_["max_depth"] = int64_t{std::min(max_depth_, max_nodes)};
    prices_threshold_ = options.find("threshold") == options.end();
    prices_floor_ = options.find("floor") == options.end();
  }
  tree_ = make_builder(name, options_);
  if (!tree_->makes_chains() && tree_->proposal() != Proposal::kTopPlusOne) {
    chain_ = make_builder("chain", {{"proposal", std::string(proposal_name(tree_->proposal()))}});
  }
}

std::string_view PlannedBuilders::name(const RoundPlan& plan) const {
  return plan.kind == RoundKind::kChain ? "chain" : std::string_view(name_);
}

std::shared_ptr<const TreeBuilder> PlannedBuilders::at(const RoundPlan& plan) const {
  if (plan.kind == RoundKind::kChain && chain_ != nullptr) return chain_;
  const double threshold = prices_threshold_ ? rounded(plan.threshold) : 0.0;
  const double floor = prices_floor_ ? rounded(plan.floor) : 0.0;
  if (threshold == 0.0 && floor == 0.0) return tree_;
  const std::lock_guard<std::mutex> lock(mutex_);
  std::shared_ptr<const TreeBuilder>& found = priced_[{threshold, floor}];
  if (found == nullptr) {
    BuilderOptions options = options_;
    if (prices_threshold_) options["threshold"] = threshold;
    if (prices_floor_) options["floor"] = floor;
    found = make_builder(name_, options);
  }
  return found;
}

}  // namespace treespec
