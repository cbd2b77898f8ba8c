// SPDX-License-Identifier: Apache-2.0
// Exported models as TargetModel and DraftModel, whoever else shares their graphs.
#pragma once

#include <cstdint>
#include <memory>

#include "block_graph.h"
#include "causal_graph.h"
#include "treespec/decoder.h"
#include "treespec/exported_model.h"

namespace treespec::exported {

/// What the constructors of ExportedTarget and ExportedDraft check; `who` is named in the errors.
void check_target(const char* who, const ExportedModel* model,
                  const ExportedTargetOptions& options);
void check_draft(const char* who, const ExportedModel* model, const ExportManifest& target,
                 const ExportedDraftOptions& options);

std::unique_ptr<TargetModel> make_target(std::unique_ptr<CausalSequence> sequence,
                                         const ExportedTargetOptions& options);
/// `vocab_size`: of the target.
std::unique_ptr<DraftModel> make_causal_draft(std::unique_ptr<CausalSequence> sequence,
                                              int32_t vocab_size,
                                              const ExportedDraftOptions& options);
std::unique_ptr<DraftModel> make_block_draft(std::unique_ptr<BlockSequence> sequence,
                                             const ExportedDraftOptions& options);

}  // namespace treespec::exported
