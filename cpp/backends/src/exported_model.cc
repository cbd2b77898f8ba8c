// SPDX-License-Identifier: Apache-2.0
// ExportedTarget and ExportedDraft: a sequence with graphs of its own, and what may be paired.
#include "treespec/exported_model.h"

#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "models.h"
#include "treespec/error.h"

namespace treespec {
namespace {

std::string listed(const std::vector<int32_t>& values) {
  std::ostringstream out;
  out << '[';
  for (size_t i = 0; i < values.size(); ++i) out << (i > 0 ? ", " : "") << values[i];
  out << ']';
  return out.str();
}

void check_prefill_rows(const char* who, int32_t prefill_rows) {
  TREESPEC_CHECK(prefill_rows >= 1, who, ": prefill_rows must be at least 1, got ", prefill_rows);
}

}  // namespace

void exported::check_target(const char* who, const ExportedModel* model,
                            const ExportedTargetOptions& options) {
  TREESPEC_CHECK(model != nullptr, who, ": the target must not be null");
  const ExportManifest& m = model->manifest();
  TREESPEC_CHECK(m.role == ModelRole::kTarget && m.kind == ModelKind::kCausalLm, who,
                 ": the target must be exported as one, got the drafter '", m.folder, "'");
  check_prefill_rows(who, options.prefill_rows);
}

void exported::check_draft(const char* who, const ExportedModel* model,
                           const ExportManifest& target, const ExportedDraftOptions& options) {
  TREESPEC_CHECK(model != nullptr, who, ": the drafter must not be null");
  const ExportManifest& m = model->manifest();
  TREESPEC_CHECK(m.role == ModelRole::kDrafter, who,
                 ": the drafter must be exported as one, got the target '", m.folder, "'");
  TREESPEC_CHECK(target.vocab_size > 0, who, ": vocab_size of the target must be positive, got ",
                 target.vocab_size);
  TREESPEC_CHECK(!options.temperature || *options.temperature > 0.0, who,
                 ": temperature must be above 0, got ", *options.temperature);
  check_prefill_rows(who, options.prefill_rows);
  if (m.layers.empty()) return;
  TREESPEC_CHECK(m.layers == target.layers && m.layers_width == target.layers_width, who,
                 ": the target must give features of the layers ", listed(m.layers), ", ",
                 m.layers_width, " wide, that '", m.folder, "' reads, got ", listed(target.layers),
                 ", ", target.layers_width, " wide; export both together");
  TREESPEC_CHECK(m.dtype == target.dtype, who, ": the target must be of the dtype of '", m.folder,
                 "', which reads its features; export both with one dtype");
}

ExportedTarget::ExportedTarget(std::shared_ptr<const ExportedModel> model,
                               const ExportedTargetOptions& options)
    : model_(std::move(model)) {
  exported::check_target("ExportedTarget", model_.get(), options);
  target_ = exported::make_target(exported::make_sequence(model_, options.features), options);
}

ExportedTarget::~ExportedTarget() = default;
const ExportManifest& ExportedTarget::manifest() const { return model_->manifest(); }
int32_t ExportedTarget::vocab_size() const { return target_->vocab_size(); }
int32_t ExportedTarget::max_context() const { return target_->max_context(); }
RowsView ExportedTarget::prefill(ArrayView<const int32_t> token_ids) {
  return target_->prefill(token_ids);
}
RowsView ExportedTarget::forward(const TreeStep& step) { return target_->forward(step); }
void ExportedTarget::commit(ArrayView<const int32_t> nodes) { target_->commit(nodes); }
RowsView ExportedTarget::states() { return target_->states(); }

ExportedDraft::ExportedDraft(std::shared_ptr<const ExportedModel> model,
                             const ExportManifest& target, const ExportedDraftOptions& options)
    : model_(std::move(model)) {
  exported::check_draft("ExportedDraft", model_.get(), target, options);
  if (manifest().kind == ModelKind::kCausalLm) {
    draft_ = exported::make_causal_draft(exported::make_sequence(model_, false), target.vocab_size,
                                         options);
  } else {
    draft_ = exported::make_block_draft(exported::make_block_sequence(model_), options);
  }
}

ExportedDraft::~ExportedDraft() = default;
const ExportManifest& ExportedDraft::manifest() const { return model_->manifest(); }
int32_t ExportedDraft::vocab_size() const { return draft_->vocab_size(); }
int32_t ExportedDraft::max_context() const { return draft_->max_context(); }
void ExportedDraft::begin(ArrayView<const int32_t> prompt, const RowsView& states) {
  draft_->begin(prompt, states);
}
CandidateSource& ExportedDraft::draft(const DraftRequest& request) {
  return draft_->draft(request);
}
void ExportedDraft::observe(ArrayView<const int32_t> token_ids, const RowsView& states) {
  draft_->observe(token_ids, states);
}

}  // namespace treespec
