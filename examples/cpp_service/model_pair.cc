// SPDX-License-Identifier: Apache-2.0
#include "model_pair.h"

#include <algorithm>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <utility>

#include "treespec/drafts.h"

namespace service {
namespace {

// OPT-Tree's threshold for drafters that pay for every layer, as in `treespec.load` on a CPU.
constexpr double kLayerThreshold = 0.4;

/// "auto" is the drafter that `treespec export` puts beside the target, if it did.
Options resolved(Options options) {
  if (options.drafter == "auto") {
    const auto beside = std::filesystem::path(options.model) / "drafter";
    options.drafter = std::filesystem::exists(beside) ? beside.string() : "suffix";
  }
  return options;
}

}  // namespace

ModelPair::ModelPair(const Options& options) : options_(resolved(options)) {
  const treespec::OrtOptions run{options.threads};
  target_ = treespec::OrtModel::load(options_.model, run);
  const int32_t max_nodes = manifest().max_nodes;
  if (options_.drafter != "none" && options_.nodes >= max_nodes) {
    throw std::runtime_error(
        "--nodes must be below " + std::to_string(max_nodes) + ", which " + options_.model +
        " was exported for (treespec export --max-nodes), got " + std::to_string(options_.nodes));
  }
  const std::string& name = options_.drafter;
  if (name == "none" || name == "suffix" || name == "ngram") return;
  drafter_ = treespec::OrtModel::load(name, run);
}

int32_t ModelPair::max_context() const {
  const int32_t target = manifest().max_context;
  return drafter_ == nullptr ? target : std::min(target, drafter_->manifest().max_context);
}

std::vector<std::unique_ptr<Slot>> ModelPair::make_slots(int count) const {
  const treespec::ExportedTargetOptions target_options{drafter_ != nullptr &&
                                                       drafter_->manifest().layers_width > 0};
  treespec::GenerateOptions trial;
  trial.max_new_tokens = 4;
  std::vector<std::unique_ptr<Slot>> slots;
  for (int i = 0; i < count; ++i) {
    auto target = std::make_unique<treespec::OrtTarget>(target_, target_options);
    auto draft = make_draft();
    auto decoder = slots.empty()
                       ? treespec::SpeculativeDecoder(*target, draft.get(), recipe())
                       : treespec::SpeculativeDecoder(slots[0]->decoder, *target, draft.get());
    decoder.generate(std::vector<int32_t>{0}, trial);
    slots.push_back(
        std::make_unique<Slot>(Slot{std::move(target), std::move(draft), std::move(decoder)}));
  }
  return slots;
}

std::unique_ptr<treespec::DraftModel> ModelPair::make_draft() const {
  if (drafter_ != nullptr) return std::make_unique<treespec::OrtDraft>(drafter_, manifest());
  if (options_.drafter == "suffix") return std::make_unique<treespec::SuffixDraft>();
  if (options_.drafter == "ngram") return std::make_unique<treespec::NgramDraft>();
  return nullptr;
}

treespec::DecoderOptions ModelPair::recipe() const {
  treespec::DecoderOptions recipe;
  recipe.builder = options_.builder;
  recipe.verifier = options_.verifier;
  recipe.node_budget = options_.nodes;
  if (options_.max_depth > 0) recipe.builder_options["max_depth"] = int64_t{options_.max_depth};
  const bool expands =
      drafter_ != nullptr && drafter_->manifest().kind == treespec::ModelKind::kCausalLm;
  if (options_.builder == "opt_tree" && expands) {
    recipe.builder_options["threshold"] = kLayerThreshold;
  }
  return recipe;
}

}  // namespace service
