// SPDX-License-Identifier: Apache-2.0
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "drafts.h"
#include "treespec/error.h"
#include "treespec/exported_model.h"

namespace treespec {
namespace {

std::string listed(const std::vector<int32_t>& values) {
  std::ostringstream out;
  out << '[';
  for (size_t i = 0; i < values.size(); ++i) out << (i > 0 ? ", " : "") << values[i];
  out << ']';
  return out.str();
}

void check_pair(const ExportManifest& m, const ExportManifest& target) {
  TREESPEC_CHECK(m.role == ModelRole::kDrafter,
                 "ExportedDraft: model must be exported as a drafter, got the target '", m.folder,
                 "'");
  TREESPEC_CHECK(target.vocab_size > 0,
                 "ExportedDraft: vocab_size of the target must be positive, got ",
                 target.vocab_size);
  if (m.layers.empty()) return;
  TREESPEC_CHECK(m.layers == target.layers && m.layers_width == target.layers_width,
                 "ExportedDraft: target must give features of the layers ", listed(m.layers), ", ",
                 m.layers_width, " wide, that '", m.folder, "' reads, got ", listed(target.layers),
                 ", ", target.layers_width, " wide; export both together");
  TREESPEC_CHECK(m.dtype == target.dtype, "ExportedDraft: dtype must be the target's, of which '",
                 m.folder, "' reads features; export both with one dtype");
}

void check_options(const ExportedDraftOptions& options) {
  TREESPEC_CHECK(!options.temperature || *options.temperature > 0.0,
                 "ExportedDraft: temperature must be above 0, got ", *options.temperature);
  TREESPEC_CHECK(options.prefill_rows >= 1, "ExportedDraft: prefill_rows must be at least 1, got ",
                 options.prefill_rows);
}

}  // namespace

ExportedDraft::ExportedDraft(std::shared_ptr<const ExportedModel> model,
                             const ExportManifest& target, const ExportedDraftOptions& options)
    : model_(std::move(model)) {
  TREESPEC_CHECK(model_ != nullptr, "ExportedDraft: model must not be null");
  check_pair(manifest(), target);
  check_options(options);
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
