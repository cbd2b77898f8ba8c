// SPDX-License-Identifier: Apache-2.0
// An autoregressive drafter: one forward per level of the tree, whose rows stay in the cache behind
// the committed ones until the round is over.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "draft_law.h"
#include "models.h"
#include "treespec/error.h"

namespace treespec::exported {
namespace {

class CausalDraft final : public DraftModel {
 public:
  CausalDraft(std::unique_ptr<CausalSequence> sequence, int32_t vocab_size,
              const ExportedDraftOptions& options)
      : sequence_(std::move(sequence)),
        options_(options),
        chunk_(sequence_->max_rows(options.prefill_rows)),
        vocab_size_(std::min(vocab_size, sequence_->manifest().vocab_size)),
        expander_(*this) {}

  int32_t vocab_size() const override { return vocab_size_; }
  int32_t max_context() const override { return sequence_->manifest().max_context; }

  void begin(ArrayView<const int32_t> prompt, const RowsView&) override {
    num_computed_ = 0;
    tokens_.clear();
    append(prompt);
    sequence_->restart(prompt.size() + 1);
  }

  void observe(ArrayView<const int32_t> token_ids, const RowsView&) override { append(token_ids); }

  CandidateSource& draft(const DraftRequest& request) override {
    TREESPEC_CHECK(!tokens_.empty(), "ExportedDraft::draft: a token must be observed before");
    catch_up();
    expander_.begin(draft_law(request, options_));
    return expander_;
  }

 private:
  /// The rounds: which row every node has.
  class LevelExpander final : public Expander {
   public:
    explicit LevelExpander(CausalDraft& draft) : draft_(draft) {}

    void begin(const SamplingParams& law) {
      law_ = law;
      parent_.clear();
      depth_.clear();
      row_of_.clear();
    }

    ArrayView<const CandidateRow> rows(ArrayView<const FrontierNode> nodes) override {
      token_.clear();
      for (const FrontierNode& node : nodes) add(node);
      RowsView logits;
      if (!token_.empty()) logits = draft_.level(token_, parent_, depth_);
      rows_.restart(law_);
      for (const FrontierNode& node : nodes) {
        if (node.index == 0) {
          rows_.append(draft_.root_logits());
          continue;
        }
        RowsView row = logits;
        row.num_rows = 1;
        rows_.append(row);
        logits.data =
            static_cast<const char*>(logits.data) + logits.row_stride * size_of(logits.dtype);
      }
      return rows_.rows();
    }

   private:
    /// Every node but the root, whose row is committed, takes a row when it is handed over.
    void add(const FrontierNode& node) {
      const auto index = static_cast<size_t>(node.index);
      if (row_of_.size() <= index) row_of_.resize(index + 1, -1);
      if (node.index == 0) return;
      row_of_[index] = static_cast<int32_t>(parent_.size());
      token_.push_back(draft_.known(node.token));
      parent_.push_back(row_of_[static_cast<size_t>(node.parent)]);
      depth_.push_back(node.depth - 1);
    }

    CausalDraft& draft_;
    SamplingParams law_;
    std::vector<int32_t> token_;           // of the running level
    std::vector<int32_t> parent_, depth_;  // of all rows of the round
    std::vector<int32_t> row_of_;          // by node index
    LawRows rows_;
  };

  void append(ArrayView<const int32_t> token_ids) {
    for (const int32_t token : token_ids) tokens_.push_back(known(token));
  }

  /// Ids that only the target has are read as 0: that costs acceptance there, never correctness.
  int32_t known(int32_t token) const {
    return token < sequence_->manifest().vocab_size ? token : 0;
  }

  /// Computes what was committed since the last draft. Computing the accepted rows again beats
  /// keeping them: the bonus token needs a forward anyway.
  void catch_up() {
    const auto size = static_cast<int64_t>(tokens_.size());
    while (num_computed_ < size) {
      Segment segment;
      segment.token = {tokens_.data() + num_computed_, std::min(chunk_, size - num_computed_)};
      segment.prefix = num_computed_;
      const RowsView logits = sequence_->run(segment).logits;
      const auto* data = static_cast<const char*>(logits.data);
      root_logits_.assign(data, data + logits.width * size_of(logits.dtype));
      num_computed_ += segment.size();
    }
  }

  /// Logits after the root, over the tokens that the target has.
  RowsView root_logits() const {
    const ExportManifest& m = sequence_->manifest();
    return {root_logits_.data(), m.dtype, 1, vocab_size_, m.vocab_size};
  }

  RowsView level(ArrayView<const int32_t> token, ArrayView<const int32_t> parent,
                 ArrayView<const int32_t> depth) {
    Segment segment;
    segment.token = token;
    segment.prefix = num_computed_;
    segment.parent = parent;
    segment.depth = depth;
    segment.all_logits = true;
    RowsView logits = sequence_->run(segment).logits;
    logits.width = vocab_size_;
    return logits;
  }

  std::unique_ptr<CausalSequence> sequence_;
  ExportedDraftOptions options_;
  int64_t chunk_;
  int32_t vocab_size_;
  std::vector<int32_t> tokens_;  // committed, the root last
  int64_t num_computed_ = 0;     // of them have rows
  std::vector<char> root_logits_;
  LevelExpander expander_;
};

}  // namespace

std::unique_ptr<DraftModel> make_causal_draft(std::unique_ptr<CausalSequence> sequence,
                                              int32_t vocab_size,
                                              const ExportedDraftOptions& options) {
  return std::make_unique<CausalDraft>(std::move(sequence), vocab_size, options);
}

}  // namespace treespec::exported
