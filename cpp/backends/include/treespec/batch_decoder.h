// SPDX-License-Identifier: Apache-2.0
// Several generations at a time with exported models, their forwards merged.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "treespec/array_view.h"
#include "treespec/decoder.h"
#include "treespec/exported_model.h"

namespace treespec {

/// Settings of BatchDecoder.
struct BatchOptions {
  int32_t size = 8;  ///< >= 1; most generations at a time
  ExportedTargetOptions target;
  ExportedDraftOptions draft;
  /// Makes a drafter that is no exported model, e.g. an NgramDraft, for each of them.
  std::function<std::unique_ptr<DraftModel>()> make_draft;
};

/// A decoder whose generations run in lock-step: they wait for each other at every forward of the
/// target and of the drafter, and one forward serves all of them. A text is that of its own single
/// run, up to rounding of the model's kernels, which may depend on the shape of a batch.
///
/// Any number of threads may call `generate`. A callback of one generation holds up all the others,
/// and must not start another one here.
class BatchDecoder {
 public:
  /// `drafter` null: plain decoding, or what `options.make_draft` makes. Throws InvalidArgument as
  /// ExportedTarget, ExportedDraft and SpeculativeDecoder do.
  BatchDecoder(std::shared_ptr<const ExportedModel> target,
               std::shared_ptr<const ExportedModel> drafter, const DecoderOptions& recipe = {},
               const BatchOptions& options = {});
  ~BatchDecoder();

  /// One generation on the calling thread, as SpeculativeDecoder::generate. Waits while `size` of
  /// them are running.
  GenerateResult generate(ArrayView<const int32_t> prompt, const GenerateOptions& options = {});
  /// All prompts, up to `size` at a time, from the first forward on together. `options`: one for
  /// each, or one for all. When a generation throws, the others end first; then its exception, or
  /// the first prompt's that has one, passes through.
  std::vector<GenerateResult> generate_all(const std::vector<std::vector<int32_t>>& prompts,
                                           const std::vector<GenerateOptions>& options);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace treespec
