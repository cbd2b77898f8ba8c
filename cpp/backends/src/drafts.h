// SPDX-License-Identifier: Apache-2.0
// Drafters of each kind of exported model; ExportedDraft has checked the model.
#pragma once

#include <cstdint>
#include <memory>

#include "block_graph.h"
#include "causal_graph.h"
#include "treespec/decoder.h"
#include "treespec/exported_model.h"

namespace treespec::exported {

/// `vocab_size`: of the target.
std::unique_ptr<DraftModel> make_causal_draft(std::unique_ptr<CausalSequence> sequence,
                                              int32_t vocab_size,
                                              const ExportedDraftOptions& options);
std::unique_ptr<DraftModel> make_block_draft(std::unique_ptr<BlockSequence> sequence,
                                             const ExportedDraftOptions& options);

}  // namespace treespec::exported
