// SPDX-License-Identifier: Apache-2.0
// A causal language model as the target: prompts in chunks, trees in one forward.
#include <algorithm>
#include <utility>
#include <vector>

#include "models.h"
#include "treespec/error.h"

namespace treespec::exported {
namespace {

class CausalTarget final : public TargetModel {
 public:
  CausalTarget(std::unique_ptr<CausalSequence> sequence, const ExportedTargetOptions& options)
      : sequence_(std::move(sequence)), chunk_(sequence_->max_rows(options.prefill_rows)) {}

  int32_t vocab_size() const override { return manifest().vocab_size; }
  int32_t max_context() const override { return manifest().max_context; }

  RowsView prefill(ArrayView<const int32_t> token_ids) override {
    length_ = num_pending_ = 0;
    states_ = {};
    TREESPEC_CHECK(!token_ids.empty(), "ExportedTarget::prefill: token_ids must not be empty");
    check_tokens("ExportedTarget::prefill", token_ids);
    sequence_->restart(token_ids.size());
    prompt_features_.clear();
    SegmentOutput output;
    while (length_ < token_ids.size()) {
      const int64_t size = std::min(chunk_, token_ids.size() - length_);
      Segment segment;
      segment.token = {token_ids.data() + length_, size};
      segment.prefix = length_;
      output = sequence_->run(segment);
      keep(output.features);
      length_ += size;
    }
    states_ = output.features;
    if (states_.data != nullptr) {
      states_.data = prompt_features_.data();
      states_.num_rows = length_;
    }
    return output.logits;
  }

  RowsView forward(const TreeStep& step) override {
    num_pending_ = 0;
    states_ = {};
    TREESPEC_CHECK(step.prefix_length == length_,
                   "ExportedTarget::forward: prefix_length must be the committed ", length_,
                   ", got ", step.prefix_length);
    check_tokens("ExportedTarget::forward", step.tokens());
    Segment segment;
    segment.token = step.tokens();
    segment.prefix = length_;
    segment.parent = step.tree.parent;
    segment.depth = step.tree.depth;
    segment.all_logits = true;
    const SegmentOutput output = sequence_->run(segment);
    num_pending_ = step.num_nodes();
    states_ = output.features;
    return output.logits;
  }

  void commit(ArrayView<const int32_t> nodes) override {
    const int64_t last = nodes.empty() ? -1 : nodes[nodes.size() - 1];
    TREESPEC_CHECK(last < num_pending_, "ExportedTarget::commit: nodes must be below the ",
                   num_pending_, " of the last forward, got ", last);
    sequence_->commit(length_, nodes);
    length_ += nodes.size();
    num_pending_ = 0;
  }

  RowsView states() override { return states_; }

 private:
  const ExportManifest& manifest() const { return sequence_->manifest(); }

  void check_tokens(const char* who, ArrayView<const int32_t> token_ids) const {
    const int32_t vocab_size = manifest().vocab_size;
    for (const int32_t token : token_ids) {
      TREESPEC_CHECK(token >= 0 && token < vocab_size, who, ": token ids must be in [0, ",
                     vocab_size, "), got ", token);
    }
  }

  /// The next chunk overwrites what the runtime holds.
  void keep(const RowsView& features) {
    if (features.data == nullptr) return;
    const auto* data = static_cast<const char*>(features.data);
    const int64_t bytes = features.num_rows * features.width * size_of(features.dtype);
    prompt_features_.insert(prompt_features_.end(), data, data + bytes);
  }

  std::unique_ptr<CausalSequence> sequence_;
  int64_t chunk_;
  int64_t length_ = 0;       // committed rows
  int64_t num_pending_ = 0;  // rows of the last forward, behind them
  std::vector<char> prompt_features_;
  RowsView states_;
};

}  // namespace

std::unique_ptr<TargetModel> make_target(std::unique_ptr<CausalSequence> sequence,
                                         const ExportedTargetOptions& options) {
  return std::make_unique<CausalTarget>(std::move(sequence), options);
}

}  // namespace treespec::exported
