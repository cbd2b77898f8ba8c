// SPDX-License-Identifier: Apache-2.0
// The table of verifiers. A new one is its file, its maker in registry.h and a row here.
#include "verifiers/registry.h"

#include <string>

#include "treespec/error.h"

namespace treespec {
namespace {

constexpr uint32_t kDeterministic = proposal_bit(Proposal::kDeterministic);
constexpr uint32_t kIid = proposal_bit(Proposal::kIid);
constexpr uint32_t kWithoutReplacement = proposal_bit(Proposal::kWithoutReplacement);
constexpr uint32_t kTopPlusOne = proposal_bit(Proposal::kTopPlusOne);
constexpr uint32_t kAny = kDeterministic | kIid | kWithoutReplacement | kTopPlusOne;

constexpr VerifierInfo kVerifiers[] = {
    {"greedy", "arg-max walk of temperature 0", kAny, false, false, make_greedy},
    {"target_only", "draw from the target, follow the matching child (NSS)", kAny, false, false,
     make_target_only},
    {"token_level", "speculative sampling of a drawn chain, token by token",
     kIid | kWithoutReplacement, true, true, make_token_level},
    {"block", "a drawn chain as a whole, the best rule for one chain (Block Verification)",
     kIid | kWithoutReplacement, true, true, make_block},
    {"naive_tree", "the token-level rule on the first draw of each node",
     kIid | kWithoutReplacement, false, true, make_naive_tree},
    {"recursive_rejection", "siblings in draw order against the residual (SpecInfer, Sequoia)",
     kIid | kWithoutReplacement, false, true, make_recursive_rejection},
    {"spectr", "all draws of a node by one threshold (K-SEQ of SpecTr)", kIid, false, true,
     make_spectr},
    {"khisti", "a tournament among the draws, then the token-level rule on its winner", kIid, false,
     true, make_khisti},
    {"traversal", "bottom-up, whole sequences; accepts most on deep drawn trees",
     kIid | kWithoutReplacement, false, true, make_traversal},
    {"top_plus_one", "the optimal rule for top tokens and one draw", kTopPlusOne, false, true,
     make_top_plus_one_verifier},
    {"typical", "LOSSY: the longest path of tokens likely enough for the target (Medusa)", 0, false,
     false, make_typical},
};

}  // namespace

ArrayView<const VerifierInfo> verifiers() {
  return {kVerifiers, static_cast<int64_t>(std::size(kVerifiers))};
}

const VerifierInfo& verifier_info(std::string_view name) {
  std::string known;
  for (const VerifierInfo& info : verifiers()) {
    if (info.name == name) return info;
    known.append(known.empty() ? "" : ", ").append(info.name);
  }
  throw InvalidArgument(
      detail::message("verifier: name must be auto or one of ", known, "; got \"", name, "\""));
}

std::unique_ptr<Verifier> make_verifier(std::string_view name) {
  return verifier_info(name).make();
}

}  // namespace treespec
