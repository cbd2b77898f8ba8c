// SPDX-License-Identifier: Apache-2.0
// An exported target with its drafter, loaded once, and the places where they work.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "options.h"
#include "treespec/decoder.h"
#include "treespec/onnxruntime.h"

namespace service {

/// One sequence at a time: target, drafter and their caches. One thread at a time.
struct Slot {
  std::unique_ptr<treespec::TargetModel> target;
  std::unique_ptr<treespec::DraftModel> draft;  ///< null: plain decoding
  treespec::SpeculativeDecoder decoder;
};

class ModelPair {
 public:
  /// Throws what the loaders throw: their messages say which folder, and what is wrong with it.
  explicit ModelPair(const Options& options);

  const treespec::ExportManifest& manifest() const { return target_->manifest(); }
  /// Most tokens of a prompt with its answer.
  int32_t max_context() const;
  /// Slots that share weights and builder. Each generates a little, so that a pair that does not
  /// fit fails here and not with the first client.
  std::vector<std::unique_ptr<Slot>> make_slots(int count) const;

 private:
  std::unique_ptr<treespec::DraftModel> make_draft() const;
  treespec::DecoderOptions recipe() const;

  Options options_;
  std::shared_ptr<const treespec::OrtModel> target_;
  std::shared_ptr<const treespec::OrtModel> drafter_;  // null: none, or one without a model
};

}  // namespace service
