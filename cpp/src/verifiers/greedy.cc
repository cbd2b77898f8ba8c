// SPDX-License-Identifier: Apache-2.0
// Temperature 0: exactly the walk that greedy decoding would take; ties go to the lowest id.
#include "row_ops.h"
#include "verifiers/registry.h"
#include "verifiers/target_walk.h"

namespace treespec {
namespace {

class Greedy final : public Verifier {
 public:
  Verdict verify(const TokenTree& tree, TargetRows& target_rows, const DraftLaw&,
                 const Coins&) const override {
    return target_walk(tree, target_rows, [](int32_t, const std::vector<double>& weights) {
      return static_cast<int32_t>(
          row::argmax(weights.data(), static_cast<int64_t>(weights.size())));
    });
  }

  std::vector<double> node_probability(const TokenTree& tree, TargetRows& target_rows,
                                       const DraftLaw&) const override {
    return target_walk_probability(tree, target_rows,
                                   [](const std::vector<double>& weights, int32_t token) {
                                     const auto size = static_cast<int64_t>(weights.size());
                                     return row::argmax(weights.data(), size) == token ? 1.0 : 0.0;
                                   });
  }
};

}  // namespace

std::unique_ptr<Verifier> make_greedy() { return std::make_unique<Greedy>(); }

}  // namespace treespec
