// SPDX-License-Identifier: Apache-2.0
// NSS: draw from the target at each node and follow the child that carries the token. The draw is
// keyed by the token's own position, so that the text does not depend on the tree or on
// speculation. Source: Miao et al., "SpecInfer", 2023, arXiv 2305.09781 (naive sampling); the name
// NSS is of arXiv 2602.16994.
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
    static thread_local TargetRow row;  // its buffers are kept
    return target_walk(tree, [&](int32_t node) {
      target_rows.load(node, {}, row);
      const auto position = key.position + static_cast<uint32_t>(tree.depth[node]) + 1;
      return sample_at_position(row, key.seed, key.sequence_id, position);
    });
  }

  std::vector<double> node_probability(const TokenTree& tree, TargetRows& target_rows,
                                       const DraftLaw&) const override {
    TargetRow row;
    return target_walk_probability(tree, [&](int32_t node) {
      target_rows.load(node, {}, row);
      return [&row, mass = row.mass()](int32_t token) { return row.weight(token) / mass; };
    });
  }
};

}  // namespace

std::unique_ptr<Verifier> make_target_only() { return std::make_unique<TargetOnly>(); }

}  // namespace treespec
