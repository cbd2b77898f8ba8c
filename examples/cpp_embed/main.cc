// SPDX-License-Identifier: Apache-2.0
// Embedding in one file: a program owns a model, treespec makes it speculative. The model counts
// which letter follows which two in a rhyme, so that the calls stand out; where it keeps a list of
// tokens, a real one keeps its KV cache.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "treespec/array_view.h"
#include "treespec/decoder.h"
#include "treespec/drafts.h"

namespace {

constexpr int32_t kVocab = 128;  // ASCII
const std::string kRhyme =
    "the house that jack built. this is the malt that lay in the house that jack built. this is "
    "the "
    "rat that ate the malt that lay in the house that jack built. this is the cat that killed the "
    "rat that ate the malt that lay in the house that jack built. ";

/// Appends one row of logits: the letters that follow `previous` and `token` in the rhyme.
void append_logits(int32_t previous, int32_t token, std::vector<float>& logits) {
  std::vector<float> count(kVocab, 1e-3f);
  for (size_t i = 0; i + 2 < kRhyme.size(); ++i) {
    if (kRhyme[i] == previous && kRhyme[i + 1] == token) count[kRhyme[i + 2]] += 1.0f;
  }
  for (const float c : count) logits.push_back(std::log(c));
}

/// What the service has: prefill, a forward over a tree, and a cache that keeps the accepted nodes.
class LetterTarget final : public treespec::TargetModel {
 public:
  int32_t vocab_size() const override { return kVocab; }

  treespec::RowsView prefill(treespec::ArrayView<const int32_t> token_ids) override {
    cache_.assign(token_ids.begin(), token_ids.end());  // a new sequence
    logits_.clear();
    const size_t size = cache_.size();
    append_logits(size > 1 ? cache_[size - 2] : ' ', cache_[size - 1], logits_);
    return rows(1);
  }

  treespec::RowsView forward(const treespec::TreeStep& step) override {
    // This model looks one node up. One with attention places node i at step.positions[i], lets it
    // see the prefix and the nodes in its ancestor bits (tree_mask.h has the other formats), and
    // writes all KV rows behind the prefix.
    tree_.assign(step.tokens().begin(), step.tokens().end());
    logits_.clear();
    for (int32_t i = 0; i < step.num_nodes(); ++i) {
      const int32_t parent = step.tree.parent[i];  // -1: the root, which follows the cache
      append_logits(parent < 0 ? cache_.back() : tree_[parent], tree_[i], logits_);
    }
    return rows(step.num_nodes());
  }

  void commit(treespec::ArrayView<const int32_t> nodes) override {
    // A real cache moves the rows of these nodes up to the prefix: treespec::commit_kv.
    for (const int32_t node : nodes) cache_.push_back(tree_[node]);
  }

 private:
  /// Borrowed by the decoder until the next call.
  treespec::RowsView rows(int64_t num_rows) const {
    return {logits_.data(), treespec::DType::kFloat32, num_rows, kVocab, kVocab};
  }

  std::vector<int32_t> cache_, tree_;
  std::vector<float> logits_;
};

/// Prints the text as it is committed; returning false would cancel.
bool print_text(treespec::ArrayView<const int32_t> token_ids) {
  for (const int32_t token : token_ids) std::putchar(token);
  std::fflush(stdout);
  return true;
}

void generate(const char* title, treespec::DraftModel* draft) {
  LetterTarget target;
  treespec::DecoderOptions recipe;
  recipe.builder = "opt_tree";
  recipe.node_budget = 24;  // drafted nodes per round
  const treespec::SpeculativeDecoder decoder(target, draft, recipe);

  treespec::GenerateOptions options;
  options.max_new_tokens = 160;
  options.sampling.temperature = 0.7;
  options.seed = 7;
  options.on_tokens = print_text;
  std::printf("--- %s\n", title);
  const std::vector<int32_t> prompt(kRhyme.begin(), kRhyme.end());
  const treespec::GenerateResult result = decoder.generate(prompt, options);
  std::printf("\n%zu tokens in %lld target forwards: %.2f per forward\n\n", result.token_ids.size(),
              static_cast<long long>(result.stats.rounds), result.stats.block_efficiency());
}

}  // namespace

int main() try {
  generate("plain decoding", nullptr);
  // Same seed, same text: a drafter changes the number of forwards, never the words.
  treespec::SuffixDraft suffix;
  generate("with a suffix drafter", &suffix);
  treespec::NgramDraft ngram;
  generate("with an n-gram drafter", &ngram);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "cpp_embed: %s\n", error.what());
  return 1;
}
