// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <utility>

#include "causal_graph.h"
#include "treespec/error.h"
#include "treespec/exported_model.h"

namespace treespec {

class ExportedTarget::Impl {
 public:
  Impl(std::unique_ptr<exported::CausalSequence> sequence, const ExportedTargetOptions& options)
      : sequence_(std::move(sequence)), chunk_(sequence_->max_rows(options.prefill_rows)) {}

  const ExportManifest& manifest() const { return sequence_->manifest(); }

  RowsView prefill(ArrayView<const int32_t> token_ids) {
    length_ = num_pending_ = 0;
    states_ = {};
    TREESPEC_CHECK(!token_ids.empty(), "ExportedTarget::prefill: token_ids must not be empty");
    check_tokens("ExportedTarget::prefill", token_ids);
    sequence_->restart(token_ids.size());
    prompt_features_.clear();
    exported::SegmentOutput output;
    while (length_ < token_ids.size()) {
      const int64_t size = std::min(chunk_, token_ids.size() - length_);
      exported::Segment segment;
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

  RowsView forward(const TreeStep& step) {
    num_pending_ = 0;
    states_ = {};
    TREESPEC_CHECK(step.prefix_length == length_,
                   "ExportedTarget::forward: prefix_length must be the committed ", length_,
                   ", got ", step.prefix_length);
    check_tokens("ExportedTarget::forward", step.tokens());
    exported::Segment segment;
    segment.token = step.tokens();
    segment.prefix = length_;
    segment.parent = step.tree.parent;
    segment.depth = step.tree.depth;
    segment.all_logits = true;
    const exported::SegmentOutput output = sequence_->run(segment);
    num_pending_ = step.num_nodes();
    states_ = output.features;
    return output.logits;
  }

  void commit(ArrayView<const int32_t> nodes) {
    const int64_t last = nodes.empty() ? -1 : nodes[nodes.size() - 1];
    TREESPEC_CHECK(last < num_pending_, "ExportedTarget::commit: nodes must be below the ",
                   num_pending_, " of the last forward, got ", last);
    sequence_->commit(length_, nodes);
    length_ += nodes.size();
    num_pending_ = 0;
  }

  RowsView states() const { return states_; }

 private:
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

  std::unique_ptr<exported::CausalSequence> sequence_;
  int64_t chunk_;
  int64_t length_ = 0;       // committed rows
  int64_t num_pending_ = 0;  // rows of the last forward, behind them
  std::vector<char> prompt_features_;
  RowsView states_;
};

namespace {

std::shared_ptr<const ExportedModel> checked(std::shared_ptr<const ExportedModel> model,
                                             const ExportedTargetOptions& options) {
  TREESPEC_CHECK(model != nullptr, "ExportedTarget: model must not be null");
  const ExportManifest& m = model->manifest();
  TREESPEC_CHECK(m.role == ModelRole::kTarget && m.kind == ModelKind::kCausalLm,
                 "ExportedTarget: model must be exported as a target, got the drafter '", m.folder,
                 "'");
  TREESPEC_CHECK(options.prefill_rows >= 1, "ExportedTarget: prefill_rows must be at least 1, got ",
                 options.prefill_rows);
  return model;
}

}  // namespace

ExportedTarget::ExportedTarget(std::shared_ptr<const ExportedModel> model,
                               const ExportedTargetOptions& options)
    : impl_(std::make_unique<Impl>(
          exported::make_sequence(checked(std::move(model), options), options.features), options)) {
}

ExportedTarget::~ExportedTarget() = default;
int32_t ExportedTarget::vocab_size() const { return manifest().vocab_size; }
RowsView ExportedTarget::prefill(ArrayView<const int32_t> token_ids) {
  return impl_->prefill(token_ids);
}
RowsView ExportedTarget::forward(const TreeStep& step) { return impl_->forward(step); }
void ExportedTarget::commit(ArrayView<const int32_t> nodes) { impl_->commit(nodes); }
RowsView ExportedTarget::states() { return impl_->states(); }
const ExportManifest& ExportedTarget::manifest() const { return impl_->manifest(); }

}  // namespace treespec
