// SPDX-License-Identifier: Apache-2.0
#include "treespec/decoder.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "c_api/border.h"
#include "c_api/handles.h"
#include "c_api/sampling.h"
#include "c_api/structs.h"

namespace {

using namespace treespec;     // NOLINT
using namespace treespec::c;  // NOLINT

/// A target of callbacks.
class CallbackTarget final : public TargetModel {
 public:
  explicit CallbackTarget(const treespec_target_model& model) : model_(model) {}

  int32_t vocab_size() const override { return static_cast<int32_t>(model_.vocab_size); }
  int32_t max_context() const override { return limit_of(model_.max_context); }

  RowsView prefill(ArrayView<const int32_t> token_ids) override {
    treespec_rows logits = wanted(1);
    call_back("TargetModel::prefill", false, model_.prefill, model_.user, token_ids.data(),
              token_ids.size(), &logits);
    return rows_of("TargetModel::prefill", "logits", &logits);
  }

  RowsView forward(const TreeStep& step) override {
    const treespec_tree_step lent_step{sizeof(lent_step),         lent(step.tree),
                                       step.num_nodes(),          step.tree.token.data(),
                                       step.tree.parent.data(),   step.positions.data(),
                                       step.ancestor_bits.data(), step.prefix_length};
    treespec_rows logits = wanted(step.num_nodes());
    call_back("TargetModel::forward", false, model_.forward, model_.user, &lent_step, &logits);
    return rows_of("TargetModel::forward", "logits", &logits);
  }

  void commit(ArrayView<const int32_t> nodes) override {
    call_back("TargetModel::commit", false, model_.commit, model_.user, nodes.data(), nodes.size());
  }

  RowsView states() override {
    treespec_rows rows{};
    if (model_.states == nullptr) return {};
    call_back("TargetModel::states", false, model_.states, model_.user, &rows);
    return optional_rows_of("TargetModel::states", "states", &rows);
  }

 private:
  treespec_rows wanted(int64_t num_rows) const {
    return {nullptr, TREESPEC_FLOAT32, 0, num_rows, model_.vocab_size, model_.vocab_size};
  }

  treespec_target_model model_;
};

treespec_decoder_options default_decoder_options() {
  treespec_decoder_options options{};
  options.struct_size = sizeof(options);
  options.node_budget = DecoderOptions{}.node_budget;
  return options;
}

treespec_generate_options default_generate_options() {
  treespec_generate_options options{};
  options.struct_size = sizeof(options);
  options.max_new_tokens = GenerateOptions{}.max_new_tokens;
  return options;
}

DecoderOptions decoder_options_of(const char* who, const treespec_decoder_options* given) {
  const auto known = read_optional_struct(who, "options", given, default_decoder_options());
  DecoderOptions options;
  if (known.builder != nullptr) options.builder = known.builder;
  if (known.builder_options != nullptr) options.builder_options = known.builder_options->values;
  if (known.verifier != nullptr) options.verifier = known.verifier;
  options.node_budget = known.node_budget;
  options.lossy = known.lossy != 0;
  return options;
}

GenerateOptions generate_options_of(const char* who, const treespec_generate_options* given,
                                    int64_t vocab_size) {
  const auto known = read_optional_struct(who, "options", given, default_generate_options());
  GenerateOptions options;
  options.max_new_tokens = known.max_new_tokens;
  options.sampling = sampling_of(who, known.sampling);
  options.seed = known.seed;
  options.sequence_id = known.sequence_id;
  options.stop_token_ids =
      copied(who, "stop_token_ids", known.stop_token_ids, known.num_stop_token_ids);
  if (known.stop_when != nullptr) {
    options.stop_when = [known](ArrayView<const int32_t> output) {
      return call_back("stop_when", true, known.stop_when, known.user, output.data(),
                       output.size());
    };
  }
  if (known.on_tokens != nullptr) {
    options.on_tokens = [known](ArrayView<const int32_t> token_ids) {
      return !call_back("on_tokens", true, known.on_tokens, known.user, token_ids.data(),
                        token_ids.size());
    };
  }
  if (known.allow != nullptr) {
    options.allow = [known, words = (vocab_size + 31) / 32](
                        const TokenTree& tree, ArrayView<const int32_t> text, uint32_t* allowed) {
      call_back("allow", false, known.allow, known.user, lent(tree), text.data(), text.size(),
                allowed, tree.num_nodes() * words);
    };
  }
  return options;
}

}  // namespace

struct treespec_decoder {
  treespec_decoder(const treespec_target_model& model, DraftModel* draft,
                   const DecoderOptions& options)
      : target(model), decoder(target, draft, options) {}

  CallbackTarget target;
  SpeculativeDecoder decoder;
};

struct treespec_result {
  GenerateResult result;
};

treespec_status treespec_decoder_options_init(treespec_decoder_options* options,
                                              size_t struct_size) {
  return init_struct(__func__, "options", options, struct_size, default_decoder_options());
}

treespec_status treespec_generate_options_init(treespec_generate_options* options,
                                               size_t struct_size) {
  return init_struct(__func__, "options", options, struct_size, default_generate_options());
}

treespec_status treespec_decoder_create(const treespec_target_model* target,
                                        treespec_drafter* drafter,
                                        const treespec_decoder_options* options,
                                        treespec_decoder** decoder) {
  return guarded(__func__, [&](const char* who) {
    treespec_decoder*& out = new_handle(who, "decoder", decoder);
    const treespec_target_model model = read_struct(who, "target", target);
    size32(who, "target.vocab_size", model.vocab_size, 1);
    size32(who, "target.max_context", model.max_context, 0);
    require_callback(who, "target.prefill", model.prefill);
    require_callback(who, "target.forward", model.forward);
    require_callback(who, "target.commit", model.commit);
    out = new treespec_decoder(model, drafter != nullptr ? drafter->model.get() : nullptr,
                               decoder_options_of(who, options));
  });
}

void treespec_decoder_free(treespec_decoder* decoder) { delete decoder; }

treespec_status treespec_decoder_generate(const treespec_decoder* decoder, const int32_t* prompt,
                                          int64_t prompt_length,
                                          const treespec_generate_options* options,
                                          treespec_result** result) {
  return guarded(__func__, [&](const char* who) {
    treespec_result*& out = new_handle(who, "result", result);
    const treespec_decoder& recipe = required(who, "decoder", decoder);
    const auto text = view(who, "prompt", prompt, prompt_length);
    out = new treespec_result{recipe.decoder.generate(
        text, generate_options_of(who, options, recipe.target.vocab_size()))};
  });
}

treespec_status treespec_result_get_data(const treespec_result* result,
                                         treespec_result_data* data) {
  return guarded(__func__, [&](const char* who) {
    const GenerateResult& known = required(who, "result", result).result;
    const Stats& stats = known.stats;
    treespec_result_data out{};
    out.token_ids = known.token_ids.data();
    out.num_token_ids = static_cast<int64_t>(known.token_ids.size());
    out.rounds = stats.rounds;
    out.emitted_tokens = stats.emitted_tokens;
    out.drafted_nodes = stats.drafted_nodes;
    out.accepted_by_depth = stats.accepted_by_depth.data();
    out.num_depths = static_cast<int64_t>(stats.accepted_by_depth.size());
    out.accepted_by_rank = stats.accepted_by_rank.data();
    out.num_ranks = static_cast<int64_t>(stats.accepted_by_rank.size());
    out.prefill_seconds = stats.prefill_seconds;
    static_assert(sizeof(out.step_seconds) == sizeof(stats.seconds));
    std::copy(stats.seconds.begin(), stats.seconds.end(), out.step_seconds);
    out.stop_reason = static_cast<treespec_stop_reason>(known.stop_reason);
    write_struct(who, "data", data, out);
  });
}

void treespec_result_free(treespec_result* result) { delete result; }
