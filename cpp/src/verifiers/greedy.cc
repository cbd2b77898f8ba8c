// SPDX-License-Identifier: Apache-2.0
// Temperature 0: exactly the walk that greedy decoding would take; ties go to the lowest id.
#include "verifiers/registry.h"
#include "verifiers/target_walk.h"

namespace treespec {
namespace {

class Greedy final : public Verifier {
 public:
  Verdict verify(const TokenTree& tree, TargetRows& target_rows, const DraftLaw&,
                 const Coins&) const override {
    return target_walk(tree, [&](int32_t node) { return target_rows.argmax(node); });
  }

  std::vector<double> node_probability(const TokenTree& tree, TargetRows& target_rows,
                                       const DraftLaw&) const override {
    return target_walk_probability(tree, [&](int32_t node) {
      const int32_t best = target_rows.argmax(node);
      return [best](int32_t token) { return token == best ? 1.0 : 0.0; };
    });
  }
};

}  // namespace

std::unique_ptr<Verifier> make_greedy() { return std::make_unique<Greedy>(); }

}  // namespace treespec
