// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <utility>
#include <vector>

#include "c_api/border.h"
#include "c_api/builder.h"
#include "c_api/handles.h"
#include "c_api/sampling.h"
#include "c_api/structs.h"
#include "treespec/decoder.h"
#include "treespec/drafts.h"

namespace {

using namespace treespec;     // NOLINT
using namespace treespec::c;  // NOLINT

/// A drafter of callbacks. Keeps the source of the last draft.
class CallbackDraft final : public DraftModel {
 public:
  explicit CallbackDraft(const treespec_draft_model& model) : model_(model) {}

  int32_t vocab_size() const override { return static_cast<int32_t>(model_.vocab_size); }
  int32_t max_context() const override { return limit_of(model_.max_context); }

  void begin(ArrayView<const int32_t> prompt, const RowsView& states) override {
    const treespec_rows rows = c_rows(states);
    call_back("DraftModel::begin", false, model_.begin, model_.user, prompt.data(), prompt.size(),
              &rows);
  }

  CandidateSource& draft(const DraftRequest& request) override {
    source_.reset();
    const treespec_sampling sampling = c_sampling(request.sampling, bias_);
    const treespec_draft_request asked{
        sizeof(asked),     c_key(request.key),  request.root_token,
        request.max_depth, request.node_budget, static_cast<treespec_proposal>(request.proposal),
        &sampling};
    treespec_source* made = nullptr;
    const auto take = [&] { source_.reset(made); };
    try {
      call_back("DraftModel::draft", false, model_.draft, model_.user, &asked, &made);
    } catch (...) {
      take();
      throw;
    }
    take();
    const treespec_source& candidates = required("DraftModel::draft", "source", source_.get());
    if (candidates.root_token != nullptr) *candidates.root_token = request.root_token;
    return *candidates.source;
  }

  void observe(ArrayView<const int32_t> token_ids, const RowsView& states) override {
    const treespec_rows rows = c_rows(states);
    call_back("DraftModel::observe", false, model_.observe, model_.user, token_ids.data(),
              token_ids.size(), &rows);
  }

 private:
  treespec_draft_model model_;
  std::unique_ptr<treespec_source> source_;
  std::vector<treespec_logit_bias> bias_;
};

treespec_ngram_options default_ngram() {
  const NgramOptions known;
  return {sizeof(treespec_ngram_options),
          known.kappa,
          known.recency,
          known.max_ngram,
          known.min_ngram,
          known.max_hits,
          0};
}

treespec_suffix_options default_suffix() {
  const SuffixOptions known;
  return {sizeof(treespec_suffix_options),
          known.alpha,
          known.beta,
          known.min_token_prob,
          known.kappa,
          known.max_match,
          known.max_depth,
          known.max_children,
          0};
}

DraftModel& model_of(const char* who, treespec_drafter* drafter) {
  return *required(who, "drafter", drafter).model;
}

}  // namespace

treespec_status treespec_ngram_options_init(treespec_ngram_options* options, size_t struct_size) {
  return init_struct(__func__, "options", options, struct_size, default_ngram());
}

treespec_status treespec_suffix_options_init(treespec_suffix_options* options, size_t struct_size) {
  return init_struct(__func__, "options", options, struct_size, default_suffix());
}

treespec_status treespec_ngram_drafter_create(const treespec_ngram_options* options,
                                              treespec_drafter** drafter) {
  return guarded(__func__, [&](const char* who) {
    treespec_drafter*& out = new_handle(who, "drafter", drafter);
    const auto known = read_optional_struct(who, "options", options, default_ngram());
    check_reserved(who, "options", known.reserved);
    out = new treespec_drafter{std::make_unique<NgramDraft>(NgramOptions{
        known.max_ngram, known.min_ngram, known.kappa, known.max_hits, known.recency})};
  });
}

treespec_status treespec_suffix_drafter_create(const treespec_suffix_options* options,
                                               treespec_drafter** drafter) {
  return guarded(__func__, [&](const char* who) {
    treespec_drafter*& out = new_handle(who, "drafter", drafter);
    const auto known = read_optional_struct(who, "options", options, default_suffix());
    check_reserved(who, "options", known.reserved);
    out = new treespec_drafter{std::make_unique<SuffixDraft>(
        SuffixOptions{known.max_match, known.max_depth, known.alpha, known.beta,
                      known.min_token_prob, known.kappa, known.max_children})};
  });
}

treespec_status treespec_drafter_create(const treespec_draft_model* model,
                                        treespec_drafter** drafter) {
  return guarded(__func__, [&](const char* who) {
    treespec_drafter*& out = new_handle(who, "drafter", drafter);
    const treespec_draft_model known = read_struct(who, "model", model);
    size32(who, "model.vocab_size", known.vocab_size, 0);
    size32(who, "model.max_context", known.max_context, 0);
    require_callback(who, "model.begin", known.begin);
    require_callback(who, "model.draft", known.draft);
    require_callback(who, "model.observe", known.observe);
    out = new treespec_drafter{std::make_unique<CallbackDraft>(known)};
  });
}

void treespec_drafter_free(treespec_drafter* drafter) { delete drafter; }

treespec_status treespec_drafter_begin(treespec_drafter* drafter, const int32_t* prompt,
                                       int64_t prompt_length, const treespec_rows* states) {
  return guarded(__func__, [&](const char* who) {
    model_of(who, drafter)
        .begin(view(who, "prompt", prompt, prompt_length), optional_rows_of(who, "states", states));
  });
}

treespec_status treespec_drafter_observe(treespec_drafter* drafter, const int32_t* token_ids,
                                         int64_t num_token_ids, const treespec_rows* states) {
  return guarded(__func__, [&](const char* who) {
    model_of(who, drafter)
        .observe(view(who, "token_ids", token_ids, num_token_ids),
                 optional_rows_of(who, "states", states));
  });
}

treespec_status treespec_drafter_build(treespec_drafter* drafter, const treespec_builder* builder,
                                       const treespec_sampling* sampling,
                                       const treespec_build_options* options,
                                       treespec_tree** tree) {
  return guarded(__func__, [&](const char* who) {
    treespec_tree*& out = new_handle(who, "tree", tree);
    DraftModel& model = model_of(who, drafter);
    const treespec_builder& recipe = required(who, "builder", builder);
    const SamplingParams params = sampling_of(who, sampling);
    const treespec_build_options known = build_options_of(who, options);
    if (known.node_budget == 0 || known.max_depth == 0) {
      out = owned(std::make_unique<TokenTree>(root_tree(known.root_token)));
      return;
    }
    out = grow(recipe,
               model.draft({known.root_token, key_of(known.key), known.max_depth, known.node_budget,
                            params, recipe.builder->proposal()}),
               known);
  });
}
