// SPDX-License-Identifier: Apache-2.0
// The public C++ API of steps 2 and 5: every builder grows sound trees, every verifier that a
// tree's mode admits emits the target's law, and node_probability is what happens on average.
// (Exact proofs are in tests/test_verifiers_exact.py; this is what an embedding service calls.)
#include <cmath>
#include <string>
#include <vector>

#include "check.h"
#include "treespec/candidates.h"
#include "treespec/error.h"
#include "treespec/treespec.h"

namespace {

using namespace treespec;  // NOLINT

constexpr int32_t kVocab = 4;
constexpr int32_t kDepth = 3;

/// Marginal laws of a drafter, by depth.
std::vector<float> draft_logprobs() {
  const double laws[kDepth][kVocab] = {
      {0.5, 0.25, 0.125, 0.125}, {0.1, 0.2, 0.3, 0.4}, {0.7, 0.1, 0.1, 0.1}};
  std::vector<float> rows;
  for (const auto& law : laws) {
    for (const double q : law) rows.push_back(static_cast<float>(std::log(q)));
  }
  return rows;
}

const std::vector<int32_t> kTokens{0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
/// The target's law after every node.
const std::vector<double> kTarget{0.2, 0.4, 0.3, 0.1};

std::vector<double> target_rows(const TokenTree& tree) {
  std::vector<double> rows;
  for (int32_t i = 0; i < tree.num_nodes(); ++i) {
    rows.insert(rows.end(), kTarget.begin(), kTarget.end());
  }
  return rows;
}

TokenTree grow(const char* name, const BuilderOptions& options, const RoundKey& key) {
  const std::vector<float> logprob = draft_logprobs();
  Marginals source(kTokens.data(), logprob.data(), kDepth, kVocab);
  return build_tree(*make_builder(name, options), name, source, 12, key);
}

void every_builder_grows_sound_trees() {
  for (const BuilderInfo& info : builders()) {
    const auto builder = make_builder(info.name);
    if (!builder->accepts(SourceKind::kMarginals)) continue;
    const TokenTree tree = grow(std::string(info.name).c_str(), {}, {7, 0, 3});
    CHECK(check_tree(tree).empty());
    CHECK(tree.num_nodes() > 1 && tree.num_nodes() <= 13);
    CHECK(tree.proposal == builder->proposal());
  }
  CHECK_THROWS(InvalidArgument, grow("dtree", {{"no_such_option", int64_t{1}}}, {}));
  CHECK_THROWS(InvalidArgument, grow("trie", {}, {}));
}

/// Share of each token among the first tokens of many rounds, and the mean accepted length.
struct Tally {
  std::vector<double> share = std::vector<double>(kVocab, 0.0);
  double accepted = 0.0, expected = 0.0;
};

Tally run(const char* builder, const BuilderOptions& options, const std::string& verifier) {
  constexpr int kRounds = 20000;
  Tally tally;
  for (uint32_t round = 0; round < kRounds; ++round) {
    const RoundKey key{11, 0, 16 * round};  // rounds share no position
    const TokenTree tree = grow(builder, options, key);
    const std::vector<double> rows = target_rows(tree);
    const RowsView view{rows.data(), DType::kFloat64, tree.num_nodes(), kVocab, kVocab};
    ProbabilityRows target(view, tree.num_nodes());
    const Verdict verdict = verify(verifier, tree, target, DraftLaw(tree.draft_probs), Coins(key));
    tally.share[static_cast<size_t>(verdict.tokens.front())] += 1.0 / kRounds;
    tally.accepted += static_cast<double>(verdict.num_accepted()) / kRounds;
    const auto reached = node_probability(verifier, tree, target, DraftLaw(tree.draft_probs));
    for (size_t i = 1; i < reached.size(); ++i) tally.expected += reached[i] / kRounds;
  }
  return tally;
}

void every_verifier_emits_the_targets_law() {
  const BuilderOptions iid{{"proposal", std::string("iid")},
                           {"expansion", std::vector<int64_t>{2, 2}}};
  const struct {
    const char* builder;
    BuilderOptions options;
    Proposal proposal;
  } trees[] = {
      {"opt_tree", {}, Proposal::kDeterministic},
      {"chain", {{"proposal", std::string("iid")}, {"max_depth", int64_t{3}}}, Proposal::kIid},
      {"kary", iid, Proposal::kIid},
      {"dyspec", {}, Proposal::kWithoutReplacement},
      {"top_plus_one", {}, Proposal::kTopPlusOne}};
  for (const auto& one : trees) {
    for (const VerifierInfo& info : verifiers()) {
      if (!is_lossless(info, one.proposal) || info.name == "greedy") continue;
      if (info.chain_only && std::string(one.builder) != "chain") continue;
      const Tally tally = run(one.builder, one.options, std::string(info.name));
      for (int32_t t = 0; t < kVocab; ++t) {
        CHECK(std::abs(tally.share[t] - kTarget[t]) < 0.017);  // 5 sigma of 20,000 rounds
      }
      CHECK(std::abs(tally.accepted - tally.expected) < 0.05);
    }
  }
}

void a_pair_that_would_be_biased_is_refused() {
  const TokenTree tree = grow("opt_tree", {}, {});
  const std::vector<double> rows = target_rows(tree);
  ProbabilityRows target({rows.data(), DType::kFloat64, tree.num_nodes(), kVocab, kVocab},
                         tree.num_nodes());
  for (const char* name : {"traversal", "spectr", "typical"}) {
    CHECK_THROWS(InvalidArgument, verify(name, tree, target, DraftLaw(), Coins(RoundKey{})));
  }
  verify("typical", tree, target, DraftLaw(), Coins(RoundKey{}), /*lossy=*/true);
  CHECK(auto_verifier(Proposal::kIid, false) == "traversal");
  CHECK(alpha_star(kTarget, kTarget, 1, Proposal::kIid) == 1.0);
}

void raw_logits_become_ranked_lists() {
  const std::vector<float> logits{1.0f, 3.0f, 2.0f, 3.0f};
  Marginals lists = Marginals::from_logits({logits.data(), DType::kFloat32, 1, 4, 4}, 3);
  const FrontierNode root{0, -1, 0, 0, 0};
  const CandidateRow row = lists.rows(ArrayView<const FrontierNode>(&root, 1))[0];
  CHECK_EQUAL(row.token[0], 1);
  CHECK_EQUAL(row.token[1], 3);
  CHECK_EQUAL(row.token[2], 2);
  const double mass = 2.0 + std::exp(-1.0) + std::exp(-2.0);
  CHECK(std::abs(row.logprob[0] + std::log(mass)) < 2e-6);
}

}  // namespace

int main() {
  every_builder_grows_sound_trees();
  every_verifier_emits_the_targets_law();
  a_pair_that_would_be_biased_is_refused();
  raw_logits_become_ranked_lists();
  return 0;
}
