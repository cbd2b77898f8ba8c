// SPDX-License-Identifier: Apache-2.0
// NSS: draw from the target at each node and follow the child that carries the token. The draw is
// keyed by the token's own position, so that the text does not depend on the tree or on
// speculation. Source: Miao et al., "SpecInfer", 2023, arXiv 2305.09781 (naive sampling); the name
// NSS is of arXiv 2602.16994.
#include "row_ops.h"
#include "shared/fixed_point.hd.h"
#include "treespec/error.h"
#include "verifiers/registry.h"
#include "verifiers/target_walk.h"

namespace treespec {
namespace {

class TargetOnly final : public Verifier {
 public:
  Verdict verify(const TokenTree& tree, TargetRows& target_rows, const DraftLaw&,
                 const Coins& coins) const override {
    TREESPEC_CHECK(!coins.injected(),
                   "target_only: coins cannot be given, its draws are keyed by position");
    const RoundKey& key = coins.key();
    return target_walk(tree, target_rows, [&](int32_t node, const std::vector<double>& weights) {
      const auto position = key.position + static_cast<uint32_t>(tree.depth[node]) + 1;
      return sample_at_position(weights, key.seed, key.sequence_id, position);
    });
  }

  std::vector<double> node_probability(const TokenTree& tree, TargetRows& target_rows,
                                       const DraftLaw&) const override {
    return target_walk_probability(
        tree, target_rows, [](const std::vector<double>& weights, int32_t token) {
          const auto size = static_cast<int64_t>(weights.size());
          const uint64_t mass = row::raw_fixed_sum(weights.data(), size);
          return weights[static_cast<size_t>(token)] / shared::from_raw_fixed(mass);
        });
  }
};

}  // namespace

std::unique_ptr<Verifier> make_target_only() { return std::make_unique<TargetOnly>(); }

}  // namespace treespec
