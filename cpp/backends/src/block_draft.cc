// SPDX-License-Identifier: Apache-2.0
// A DFlash or TreeFlash drafter: a block of ranked lists in one forward, from the features of what
// is committed.
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "block_graph.h"
#include "draft_law.h"
#include "models.h"
#include "treespec/error.h"

namespace treespec::exported {
namespace {

/// Leaves the first `count` of a list whose scores fall. What loses its end is the whole law then,
/// and sums to 1.
void cut_list(float* logprob, int32_t width, int32_t count) {
  if (count == width) return;
  double mass = 0.0;
  for (int32_t k = 0; k < count; ++k) mass += std::exp(static_cast<double>(logprob[k]));
  const double log_mass = std::log(mass);
  for (int32_t k = 0; k < count; ++k) {
    logprob[k] = static_cast<float>(std::fmin(logprob[k] - log_mass, 0.0));
  }
  std::fill(logprob + count, logprob + width, -std::numeric_limits<float>::infinity());
}

/// Top-k and top-p of a ranked list, as far as it says enough: of the mass beyond its end it does
/// not.
void truncate_list(float* logprob, int32_t width, const SamplingParams& law) {
  int32_t kept = width;
  if (law.top_k > 0 && law.top_k < width) {
    kept = law.top_k;
    while (kept < width && logprob[kept] == logprob[law.top_k - 1]) ++kept;
    cut_list(logprob, width, kept);
  }
  if (law.top_p < 1.0) {
    double mass = 0.0;
    int32_t count = 0;
    while (count < kept && mass < law.top_p) {
      mass += std::exp(static_cast<double>(logprob[count++]));
    }
    cut_list(logprob, width, count);
  }
}

class BlockDraft final : public DraftModel {
 public:
  BlockDraft(std::unique_ptr<BlockSequence> sequence, const ExportedDraftOptions& options)
      : sequence_(std::move(sequence)),
        block_(*sequence_->manifest().block),
        options_(options),
        chunk_(sequence_->max_rows(options.prefill_rows)) {}

  int32_t vocab_size() const override { return sequence_->manifest().vocab_size; }
  int32_t max_context() const override { return sequence_->manifest().max_context; }

  void begin(ArrayView<const int32_t> prompt, const RowsView& states) override {
    length_ = 0;
    features_.clear();
    root_.reset();
    written_ = false;
    append("ExportedDraft::begin", states, prompt.size());
    sequence_->restart(prompt.size() + block_.slots);
  }

  void observe(ArrayView<const int32_t> token_ids, const RowsView& states) override {
    if (token_ids.empty()) return;
    if (root_) {
      if (written_) settle(num_features());
      append("ExportedDraft::observe", states, token_ids.size());
    }
    root_ = token_ids[token_ids.size() - 1];
  }

  CandidateSource& draft(const DraftRequest& request) override {
    TREESPEC_CHECK(root_ && num_features() > 0,
                   "ExportedDraft::draft: a prompt and a token must be observed before");
    const SamplingParams law = draft_law(request, options_);
    while (num_features() > chunk_) {
      run(chunk_, law);
      settle(chunk_);
    }
    const BlockOutput output = run(num_features(), law);
    written_ = true;
    return read(output, law);
  }

 private:
  int64_t row_bytes() const {
    return sequence_->manifest().layers_width * size_of(sequence_->manifest().dtype);
  }
  int64_t num_features() const { return static_cast<int64_t>(features_.size()) / row_bytes(); }

  void append(const char* who, const RowsView& states, int64_t num_rows) {
    const ExportManifest& m = sequence_->manifest();
    TREESPEC_CHECK(states.data != nullptr, who, ": states must be features of the layers that '",
                   m.folder,
                   "' reads, got none; the target must have them exported and switched on");
    TREESPEC_CHECK(
        states.num_rows == num_rows && states.width == m.layers_width && states.dtype == m.dtype,
        who, ": states must be [", num_rows, ", ", m.layers_width, "] of ", size_of(m.dtype),
        " bytes a number, got [", states.num_rows, ", ", states.width, "] of ",
        size_of(states.dtype));
    const auto* data = static_cast<const char*>(states.data);
    for (int64_t i = 0; i < num_rows; ++i, data += states.row_stride * size_of(states.dtype)) {
      features_.insert(features_.end(), data, data + row_bytes());
    }
  }

  /// The rows of the first `count` features are in the cache.
  void settle(int64_t count) {
    length_ += count;
    features_.erase(features_.begin(), features_.begin() + count * row_bytes());
    written_ = false;
  }

  BlockOutput run(int64_t count, const SamplingParams& law) {
    BlockRequest request;
    request.length = length_;
    request.features = features_.data();
    request.num_features = count;
    request.root = *root_;
    return sequence_->run(request, law.temperature);
  }

  CandidateSource& read(const BlockOutput& output, const SamplingParams& law) {
    const int64_t lists = num_lists(block_), size = lists * block_.width;
    token_.assign(output.token, output.token + size);
    logprob_.assign(output.logprob, output.logprob + size);
    for (int64_t list = 0; truncates(law) && list < lists; ++list) {
      truncate_list(logprob_.data() + list * block_.width, block_.width, law);
    }
    if (block_.num_previous == 0) {
      return marginals_.emplace(token_.data(), logprob_.data(), block_.depth, block_.width);
    }
    const int64_t owners = (block_.depth - 1) * int64_t{block_.num_previous};
    const int64_t linked = int64_t{block_.depth} * block_.num_previous * block_.width;
    owner_.assign(output.owner, output.owner + owners);
    linked_token_.resize(static_cast<size_t>(linked));
    linked_logprob_.resize(static_cast<size_t>(linked));
    next_.resize(static_cast<size_t>(linked));
    link_transitions(token_.data(), logprob_.data(), owner_.data(), block_.depth,
                     block_.num_previous, block_.width, linked_token_.data(),
                     linked_logprob_.data(), next_.data());
    return transitions_.emplace(linked_token_.data(), linked_logprob_.data(), next_.data(),
                                block_.depth, block_.num_previous, block_.width);
  }

  std::unique_ptr<BlockSequence> sequence_;
  const BlockShape& block_;
  ExportedDraftOptions options_;
  int64_t chunk_;
  int64_t length_ = 0;          // context rows
  std::vector<char> features_;  // of the committed positions behind them
  bool written_ = false;        // whether a draft has given these rows already
  std::optional<int32_t> root_;
  std::vector<int32_t> token_, owner_, linked_token_, next_;
  std::vector<float> logprob_, linked_logprob_;
  std::optional<Marginals> marginals_;  // of the last draft
  std::optional<Transitions> transitions_;
};

}  // namespace

std::unique_ptr<DraftModel> make_block_draft(std::unique_ptr<BlockSequence> sequence,
                                             const ExportedDraftOptions& options) {
  return std::make_unique<BlockDraft>(std::move(sequence), options);
}

}  // namespace treespec::exported
