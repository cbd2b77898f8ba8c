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
    static thread_local std::vector<double> weights;  // kept, like the scores of process_logits
    weights.resize(static_cast<size_t>(target_rows.vocab_size()));
    return target_walk(tree, [&](int32_t node) {
      target_rows.load(node, weights.data());
      const auto position = key.position + static_cast<uint32_t>(tree.depth[node]) + 1;
      return sample_at_position(weights, key.seed, key.sequence_id, position);
    });
  }

  std::vector<double> node_probability(const TokenTree& tree, TargetRows& target_rows,
                                       const DraftLaw&) const override {
    std::vector<double> weights(static_cast<size_t>(target_rows.vocab_size()));
    return target_walk_probability(tree, [&](int32_t node) {
      target_rows.load(node, weights.data());
      const uint64_t sum = row::raw_fixed_sum(weights.data(), target_rows.vocab_size());
      return [&weights, mass = shared::from_raw_fixed(sum)](int32_t token) {
        return weights[static_cast<size_t>(token)] / mass;
      };
    });
  }
};

}  // namespace

std::unique_ptr<Verifier> make_target_only() { return std::make_unique<TargetOnly>(); }

}  // namespace treespec
