// SPDX-License-Identifier: Apache-2.0
// Several threads decode with one shared builder and verifier; every text equals its serial run.
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "toy_models.h"
#include "treespec/decoder.h"
#include "treespec/drafts.h"

namespace {

using namespace treespec;        // NOLINT
using namespace treespec::test;  // NOLINT

constexpr int32_t kVocab = 9;
constexpr uint64_t kTable = 5;
constexpr int kNumThreads = 4;
constexpr uint64_t kNumSeeds = 40;

Tokens generate(const SpeculativeDecoder& recipe, uint64_t seed) {
  TableTarget target(kVocab, kTable);
  NoisyDraft noisy(target, 0.5);
  SuffixDraft suffix;
  DraftModel* draft = seed % 2 == 0 ? static_cast<DraftModel*>(&noisy) : &suffix;
  GenerateOptions options;
  options.seed = seed;
  options.max_new_tokens = 40;
  return SpeculativeDecoder(recipe, target, draft).generate(Tokens{1, 2, 3}, options).token_ids;
}

void texts_do_not_depend_on_the_thread() {
  TableTarget target(kVocab, kTable);
  const SpeculativeDecoder recipe(target, nullptr);
  std::vector<Tokens> serial;
  for (uint64_t seed = 0; seed < kNumSeeds; ++seed) serial.push_back(generate(recipe, seed));
  std::atomic<int> mismatches{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kNumThreads; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < kNumSeeds; ++i) {
        const uint64_t seed = (i + static_cast<uint64_t>(t) * 7) % kNumSeeds;
        if (generate(recipe, seed) != serial[seed]) ++mismatches;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQUAL(mismatches.load(), 0);
}

/// The objects below the decoder: one builder, one verifier, a source and rows per thread.
void one_builder_and_one_verifier_serve_all_threads() {
  const auto builder = make_builder(
      "kary", {{"expansion", std::vector<int64_t>{3, 2}}, {"proposal", std::string("iid")}});
  const auto verifier = make_verifier("recursive_rejection");
  const std::vector<float> row{-1.0f, -1.5f, -2.0f, -1.2f};
  const std::vector<double> law{0.1, 0.2, 0.3, 0.4};
  const auto run = [&](uint32_t position) {
    const Tokens tokens{0, 1, 2, 3, 0, 1, 2, 3};
    std::vector<float> logprob(row);
    logprob.insert(logprob.end(), row.begin(), row.end());
    Marginals source(tokens.data(), logprob.data(), 2, 4);
    const RoundKey key{11, 0, position};
    const TokenTree tree = build_tree(*builder, "kary", source, 9, key);
    std::vector<double> laws;
    for (int32_t i = 0; i < tree.num_nodes(); ++i) laws.insert(laws.end(), law.begin(), law.end());
    ProbabilityRows rows({laws.data(), DType::kFloat64, tree.num_nodes(), 4, 4}, tree.num_nodes());
    const Verdict verdict = verifier->verify(tree, rows, DraftLaw(tree.draft_probs), Coins(key));
    Tokens result = tree.token;
    result.insert(result.end(), verdict.accepted_nodes.begin(), verdict.accepted_nodes.end());
    result.push_back(verdict.next_token);
    return result;
  };
  constexpr uint32_t kRounds = 500;
  std::vector<Tokens> serial;
  for (uint32_t i = 0; i < kRounds; ++i) serial.push_back(run(i));
  std::atomic<int> mismatches{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kNumThreads; ++t) {
    threads.emplace_back([&] {
      for (uint32_t i = 0; i < kRounds; ++i) {
        if (run(i) != serial[i]) ++mismatches;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQUAL(mismatches.load(), 0);
}

}  // namespace

int main() {
  texts_do_not_depend_on_the_thread();
  one_builder_and_one_verifier_serve_all_threads();
  return 0;
}
