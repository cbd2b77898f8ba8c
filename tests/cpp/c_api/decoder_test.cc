// SPDX-License-Identifier: Apache-2.0
// The decoder over callbacks gives what the decoder over C++ models gives: texts, counters, errors.
#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "c_api/c_calls.h"
#include "check.h"
#include "toy_models.h"
#include "treespec/drafts.h"
#include "treespec/error.h"
#include "treespec/kv_commit.h"
#include "treespec/tree_mask.h"
#include "treespec/treespec_c.h"

namespace {

using namespace treespec;        // NOLINT
using namespace treespec::test;  // NOLINT

constexpr int32_t kVocab = 11;
constexpr uint64_t kTable = 77;
constexpr double kNoise = 0.4;
const Tokens kPrompt{3, 1, 4, 1, 5};

/// A callback that fails on request: at its n-th call, with a text.
struct Trap {
  std::string where;
  int call = 0;

  int32_t check(const std::string& name) {
    if (name != where || --call != 0) return TREESPEC_OK;
    treespec_set_error("out of order");
    return -42;
  }
};

RowsView core_rows(const treespec_rows& rows) {
  return {rows.data, static_cast<DType>(rows.dtype), rows.num_rows, rows.width, rows.row_stride};
}
treespec_rows c_rows(const RowsView& rows) {
  return {rows.data,      static_cast<treespec_dtype>(rows.dtype), 0, rows.num_rows, rows.width,
          rows.row_stride};
}

/// The toy target behind callbacks.
struct CTarget {
  explicit CTarget(bool with_states) : model(kVocab, kTable) { model.with_states = with_states; }

  treespec_target_model table() {
    auto out = sized<treespec_target_model>();
    out.user = this;
    out.vocab_size = kVocab;
    out.prefill = [](void* user, const int32_t* token_ids, int64_t size, treespec_rows* logits) {
      auto* self = static_cast<CTarget*>(user);
      CHECK(logits->num_rows == 1 && logits->width == kVocab && logits->row_stride == kVocab);
      CHECK(logits->data == nullptr && logits->dtype == TREESPEC_FLOAT32);
      *logits = c_rows(self->model.prefill({token_ids, size}));
      return self->trap.check("prefill");
    };
    out.forward = [](void* user, const treespec_tree_step* step, treespec_rows* logits) {
      auto* self = static_cast<CTarget*>(user);
      const int64_t n = step->num_nodes;
      CHECK_EQUAL(step->struct_size, sizeof(treespec_tree_step));
      CHECK_EQUAL(logits->num_rows, n);
      auto data = sized<treespec_tree_data>();
      CHECK_OK(treespec_tree_get_data(step->tree, &data));
      CHECK(data.num_nodes == n && data.token == step->token && data.parent == step->parent);
      TokenTree tree;
      tree.token.assign(step->token, step->token + n);
      tree.parent.assign(step->parent, step->parent + n);
      complete_tree(tree);
      std::vector<uint32_t> bits(static_cast<size_t>(n * ((n + 31) / 32)));
      CHECK_OK(treespec_mask_bits(step->tree, bits.data(), static_cast<int64_t>(bits.size())));
      CHECK(std::equal(bits.begin(), bits.end(), step->ancestor_bits));
      *logits =
          c_rows(self->model.forward({tree,
                                      {step->position, n},
                                      {step->ancestor_bits, static_cast<int64_t>(bits.size())},
                                      static_cast<int32_t>(step->prefix_length)}));
      return self->trap.check("forward");
    };
    out.commit = [](void* user, const int32_t* nodes, int64_t num_nodes) {
      auto* self = static_cast<CTarget*>(user);
      self->model.commit({nodes, num_nodes});
      return self->trap.check("commit");
    };
    out.states = [](void* user, treespec_rows* states) {
      auto* self = static_cast<CTarget*>(user);
      CHECK(states->data == nullptr);
      *states = c_rows(self->model.states());
      return self->trap.check("states");
    };
    return out;
  }

  TableTarget model;
  Trap trap;
};

/// The noisy drafter behind callbacks: an expander that is made anew in every round.
struct CDraft {
  explicit CDraft(const TableTarget& target) : model(target, kNoise) {}

  treespec_draft_model table() {
    auto out = sized<treespec_draft_model>();
    out.user = this;
    out.vocab_size = kVocab;
    out.begin = [](void* user, const int32_t* prompt, int64_t size, const treespec_rows* states) {
      auto* self = static_cast<CDraft*>(user);
      self->model.begin({prompt, size}, core_rows(*states));
      return self->trap.check("begin");
    };
    out.draft = [](void* user, const treespec_draft_request* request, treespec_source** source) {
      auto* self = static_cast<CDraft*>(user);
      CHECK_EQUAL(request->struct_size, sizeof(treespec_draft_request));
      self->last_temperature = request->sampling->temperature;
      self->last_bias = request->sampling->num_logit_bias;
      self->last_proposal = request->proposal;
      self->root_token = request->root_token;
      const SamplingParams params;
      self->candidates =
          &self->model.draft({request->root_token,
                              {request->key.seed, request->key.sequence_id, request->key.position},
                              request->max_depth,
                              request->node_budget,
                              params});
      if (!self->forget) CHECK_OK(treespec_expander_create(expand, self, source));
      return self->trap.check("draft");
    };
    out.observe = [](void* user, const int32_t* token_ids, int64_t size,
                     const treespec_rows* states) {
      auto* self = static_cast<CDraft*>(user);
      self->model.observe({token_ids, size}, core_rows(*states));
      return self->trap.check("observe");
    };
    return out;
  }

  static int32_t expand(void* user, const treespec_frontier_node* nodes, int64_t num_nodes,
                        treespec_candidates* rows) {
    auto* self = static_cast<CDraft*>(user);
    std::vector<FrontierNode> wanted;
    for (int64_t i = 0; i < num_nodes; ++i) {
      if (nodes[i].depth == 0) CHECK_EQUAL(nodes[i].token, self->root_token);
      wanted.push_back({nodes[i].index, nodes[i].parent, nodes[i].token, nodes[i].depth, 0});
    }
    const ArrayView<const CandidateRow> scored = self->candidates->rows(wanted);
    rows->logprob = scored[0].logprob;
    rows->width = rows->row_stride = scored[0].size;
    return self->trap.check("expand");
  }

  NoisyDraft model;
  Trap trap;
  CandidateSource* candidates = nullptr;
  bool forget = false;
  double last_temperature = -1.0;
  int32_t last_bias = -1, last_proposal = -1, root_token = -1;
};

// --- Equal decoders ------------------------------------------------------------------------------

struct Recipe {
  std::string drafter;  // "", "ngram", "suffix", "model"
  std::string builder;
  std::string proposal;  // an option, or ""
  std::string verifier;
  int32_t node_budget;
};

/// One generation by the C++ decoder.
GenerateResult core_generate(const Recipe& recipe, const GenerateOptions& options, Tokens& kv) {
  TableTarget target(kVocab, kTable);
  target.with_states = recipe.drafter == "model";
  NgramDraft ngram;
  SuffixDraft suffix;
  NoisyDraft noisy(target, kNoise);
  DraftModel* draft = nullptr;
  if (recipe.drafter == "ngram") draft = &ngram;
  if (recipe.drafter == "suffix") draft = &suffix;
  if (recipe.drafter == "model") draft = &noisy;
  DecoderOptions how;
  how.builder = recipe.builder;
  how.verifier = recipe.verifier;
  how.node_budget = recipe.node_budget;
  how.lossy = recipe.verifier == "typical";
  if (!recipe.proposal.empty()) how.builder_options["proposal"] = recipe.proposal;
  GenerateResult result = SpeculativeDecoder(target, draft, how).generate(kPrompt, options);
  kv = target.kv;
  return result;
}

Owned<treespec_drafter> make_drafter(const std::string& name, CDraft& draft) {
  const treespec_draft_model table = draft.table();
  if (name == "ngram") {
    return make<treespec_drafter>(treespec_ngram_drafter_create,
                                  static_cast<const treespec_ngram_options*>(nullptr));
  }
  if (name == "suffix") {
    return make<treespec_drafter>(treespec_suffix_drafter_create,
                                  static_cast<const treespec_suffix_options*>(nullptr));
  }
  if (name == "model") return make<treespec_drafter>(treespec_drafter_create, &table);
  return nullptr;
}

Owned<treespec_decoder> make_decoder(const Recipe& recipe, CTarget& target,
                                     treespec_drafter* drafter) {
  const auto builder_options = make<treespec_options>(treespec_options_create);
  if (!recipe.proposal.empty()) {
    CHECK_OK(treespec_options_set_text(builder_options.get(), "proposal", recipe.proposal.c_str()));
  }
  auto options = initial<treespec_decoder_options>(treespec_decoder_options_init);
  options.builder = recipe.builder.c_str();
  options.builder_options = builder_options.get();
  options.verifier = recipe.verifier.c_str();
  options.node_budget = recipe.node_budget;
  options.lossy = recipe.verifier == "typical";
  const treespec_target_model table = target.table();
  return make<treespec_decoder>(treespec_decoder_create, &table, drafter, &options);
}

struct CResult {
  Owned<treespec_result> handle;
  treespec_result_data data = sized<treespec_result_data>();
};

CResult generate(const treespec_decoder* decoder, const treespec_generate_options* options) {
  CResult out;
  out.handle = make<treespec_result>(treespec_decoder_generate, decoder, kPrompt.data(),
                                     static_cast<int64_t>(kPrompt.size()), options);
  CHECK_OK(treespec_result_get_data(out.handle.get(), &out.data));
  return out;
}

void check_equal_results(const treespec_result_data& data, const GenerateResult& expected) {
  const Stats& stats = expected.stats;
  CHECK(Tokens(data.token_ids, data.token_ids + data.num_token_ids) == expected.token_ids);
  CHECK_EQUAL(data.stop_reason, static_cast<treespec_stop_reason>(expected.stop_reason));
  CHECK_EQUAL(data.rounds, stats.rounds);
  CHECK_EQUAL(data.emitted_tokens, stats.emitted_tokens);
  CHECK_EQUAL(data.drafted_nodes, stats.drafted_nodes);
  CHECK(std::vector<int64_t>(data.accepted_by_depth, data.accepted_by_depth + data.num_depths) ==
        stats.accepted_by_depth);
  CHECK(std::vector<int64_t>(data.accepted_by_rank, data.accepted_by_rank + data.num_ranks) ==
        stats.accepted_by_rank);
  for (const double seconds : data.step_seconds) CHECK(seconds >= 0.0);
  CHECK(data.prefill_seconds >= 0.0);
}

const std::vector<Recipe> kRecipes = {
    {"", "opt_tree", "", "auto", 12},
    {"ngram", "trie", "", "auto", 12},
    {"suffix", "opt_tree", "", "auto", 12},
    {"suffix", "dyspec", "", "auto", 8},
    {"model", "opt_tree", "", "auto", 12},
    {"model", "chain", "", "target_only", 4},
    {"model", "kary", "iid", "recursive_rejection", 15},
    {"model", "kary", "without_replacement", "auto", 15},
    {"model", "dyspec", "", "auto", 12},
    {"model", "delayed", "", "khisti", 12},
    {"model", "top_plus_one", "", "auto", 15},
    {"model", "opt_tree", "", "typical", 12},
    {"model", "opt_tree", "", "auto", 0},
};

void texts_and_counters_are_those_of_the_cpp_decoder() {
  for (const Recipe& recipe : kRecipes) {
    for (uint64_t seed = 0; seed < 6; ++seed) {
      GenerateOptions options;
      options.seed = seed;
      options.sequence_id = static_cast<uint32_t>(seed % 2);
      options.max_new_tokens = 20 + static_cast<int32_t>(seed);
      options.sampling.temperature = seed % 3 == 0 ? 0.0 : 0.8;
      if (seed % 2 == 1) options.sampling.repetition_penalty = 1.2;
      if (seed == 5) options.sampling.logit_bias = {{2, 1.0}};

      const treespec_logit_bias bias{2, 0, 1.0};
      auto sampling = initial<treespec_sampling>(treespec_sampling_init);
      sampling.temperature = options.sampling.temperature;
      sampling.repetition_penalty = options.sampling.repetition_penalty;
      if (seed == 5) sampling.logit_bias = &bias;
      sampling.num_logit_bias = seed == 5;
      auto c_options = initial<treespec_generate_options>(treespec_generate_options_init);
      c_options.seed = seed;
      c_options.sequence_id = options.sequence_id;
      c_options.max_new_tokens = options.max_new_tokens;
      c_options.sampling = &sampling;

      CTarget target(recipe.drafter == "model");
      CDraft draft(target.model);
      const auto drafter = make_drafter(recipe.drafter, draft);
      const auto decoder = make_decoder(recipe, target, drafter.get());
      const CResult result = generate(decoder.get(), &c_options);
      Tokens kv;
      const GenerateResult expected = core_generate(recipe, options, kv);
      check_equal_results(result.data, expected);
      CHECK(target.model.kv == kv);
      if (recipe.drafter != "model" || recipe.node_budget == 0) continue;
      CHECK(draft.model.num_state_rounds > 0);
      CHECK_EQUAL(draft.last_temperature, options.sampling.temperature);
      CHECK_EQUAL(draft.last_bias, static_cast<int32_t>(seed == 5));
      CHECK_EQUAL(
          draft.last_proposal,
          static_cast<int32_t>(
              make_builder(recipe.builder, recipe.proposal.empty()
                                               ? BuilderOptions{}
                                               : BuilderOptions{{"proposal", recipe.proposal}})
                  ->proposal()));
    }
  }
}

void without_options_all_is_as_in_cpp() {
  CTarget target(false);
  const treespec_target_model table = target.table();
  const auto drafter = make<treespec_drafter>(treespec_suffix_drafter_create,
                                              static_cast<const treespec_suffix_options*>(nullptr));
  const auto decoder =
      make<treespec_decoder>(treespec_decoder_create, &table, drafter.get(),
                             static_cast<const treespec_decoder_options*>(nullptr));
  TableTarget core(kVocab, kTable);
  SuffixDraft suffix;
  check_equal_results(generate(decoder.get(), nullptr).data,
                      SpeculativeDecoder(core, &suffix).generate(kPrompt));
}

// --- Stops, streams, grammars --------------------------------------------------------------------

/// What the callbacks of a generation saw, and where they end it.
struct Watch {
  Tokens streamed;
  size_t cancel_after = 1000, stop_after = 1000;
  int32_t answer = TREESPEC_OK;
  std::string failing;

  static int32_t stop_when(void* user, const int32_t* output, int64_t size) {
    auto* self = static_cast<Watch*>(user);
    CHECK(output != nullptr && size >= 1);
    if (self->failing == "stop_when") return self->answer;
    return static_cast<size_t>(size) >= self->stop_after ? TREESPEC_STOP : TREESPEC_OK;
  }
  static int32_t on_tokens(void* user, const int32_t* token_ids, int64_t size) {
    auto* self = static_cast<Watch*>(user);
    self->streamed.insert(self->streamed.end(), token_ids, token_ids + size);
    if (self->failing == "on_tokens") return self->answer;
    return self->streamed.size() >= self->cancel_after ? TREESPEC_STOP : TREESPEC_OK;
  }
  /// Odd tokens after even ones, and the other way round.
  static int32_t allow(void* user, const treespec_tree* tree, const int32_t* text,
                       int64_t text_length, uint32_t* allowed, int64_t num_words) {
    auto* self = static_cast<Watch*>(user);
    auto data = sized<treespec_tree_data>();
    CHECK_OK(treespec_tree_get_data(tree, &data));
    CHECK_EQUAL(num_words, data.num_nodes);  // 11 tokens: a word a node
    CHECK_EQUAL(text[text_length - 1], data.token[0]);
    for (int64_t i = 0; i < num_words; ++i) {
      CHECK_EQUAL(allowed[i], 0u);
      allowed[i] = data.token[i] % 2 == 0 ? 0xaaaaaaaau : 0x55555555u;
    }
    return self->failing == "allow" ? self->answer : TREESPEC_OK;
  }
};

void stops_streams_and_grammars_are_those_of_the_cpp_decoder() {
  const Recipe recipe{"model", "opt_tree", "", "auto", 12};
  CTarget target(true);
  CDraft draft(target.model);
  const auto drafter = make_drafter("model", draft);
  const auto decoder = make_decoder(recipe, target, drafter.get());
  for (size_t n : {size_t{1}, size_t{3}, size_t{7}, size_t{11}, size_t{1000}}) {
    for (const char* what : {"cancel", "stop", "token", "grammar"}) {
      const std::string kind = what;
      Watch watch;
      Tokens streamed;
      GenerateOptions options;
      options.max_new_tokens = 30;
      options.seed = n;
      options.on_tokens = [&](ArrayView<const int32_t> ids) {
        streamed.insert(streamed.end(), ids.begin(), ids.end());
        return kind != "cancel" || streamed.size() < n;
      };
      auto c_options = initial<treespec_generate_options>(treespec_generate_options_init);
      c_options.max_new_tokens = 30;
      c_options.seed = n;
      c_options.user = &watch;
      c_options.on_tokens = Watch::on_tokens;
      const Tokens stop_ids{static_cast<int32_t>(n % 11), 7};
      if (kind == "cancel") watch.cancel_after = n;
      if (kind == "stop") {
        options.stop_when = [&](ArrayView<const int32_t> output) {
          return static_cast<size_t>(output.size()) >= n;
        };
        watch.stop_after = n;
        c_options.stop_when = Watch::stop_when;
      }
      if (kind == "token") {
        options.stop_token_ids = stop_ids;
        c_options.stop_token_ids = stop_ids.data();
        c_options.num_stop_token_ids = 2;
      }
      if (kind == "grammar") {
        options.allow = [](const TokenTree& tree, ArrayView<const int32_t>, uint32_t* allowed) {
          for (int32_t i = 0; i < tree.num_nodes(); ++i) {
            allowed[i] = tree.token[i] % 2 == 0 ? 0xaaaaaaaau : 0x55555555u;
          }
        };
        c_options.allow = Watch::allow;
      }
      const CResult result = generate(decoder.get(), &c_options);
      Tokens kv;
      const GenerateResult expected = core_generate(recipe, options, kv);
      check_equal_results(result.data, expected);
      CHECK(watch.streamed == streamed);
    }
  }
}

// --- Failures ------------------------------------------------------------------------------------

void a_failing_callback_ends_the_generation_and_the_next_one_starts_afresh() {
  const Recipe recipe{"model", "opt_tree", "", "auto", 12};
  CTarget target(true);
  CDraft draft(target.model);
  const auto drafter = make_drafter("model", draft);
  const auto decoder = make_decoder(recipe, target, drafter.get());
  auto options = initial<treespec_generate_options>(treespec_generate_options_init);
  options.max_new_tokens = 24;
  Tokens kv;
  GenerateOptions core;
  core.max_new_tokens = 24;
  const GenerateResult expected = core_generate(recipe, core, kv);

  treespec_result* result = nullptr;
  const auto run = [&] {
    return treespec_decoder_generate(decoder.get(), kPrompt.data(), 5, &options, &result);
  };
  for (const char* where : {"prefill", "forward", "commit", "states"}) {
    target.trap = {where, where == std::string("prefill") ? 1 : 2};
    const std::string text =
        std::string("TargetModel::") + where + ": callback returned -42: out of order";
    CHECK_FAILS(TREESPEC_CALLBACK_FAILED, text, run());
    check_equal_results(generate(decoder.get(), &options).data, expected);
  }
  for (const char* where : {"begin", "draft", "observe"}) {
    draft.trap = {where, where == std::string("begin") ? 1 : 2};
    const std::string text =
        std::string("DraftModel::") + where + ": callback returned -42: out of order";
    CHECK_FAILS(TREESPEC_CALLBACK_FAILED, text, run());
    check_equal_results(generate(decoder.get(), &options).data, expected);
  }
  draft.trap = {"expand", 3};
  CHECK_FAILS(TREESPEC_CALLBACK_FAILED, "expand: callback returned -42: out of order", run());
  Watch watch;
  options.user = &watch;
  options.stop_when = Watch::stop_when;
  options.on_tokens = Watch::on_tokens;
  options.allow = Watch::allow;
  for (const char* where : {"stop_when", "on_tokens", "allow"}) {
    watch.failing = where;
    watch.answer = TREESPEC_INTERNAL_ERROR;
    CHECK_FAILS(TREESPEC_CALLBACK_FAILED, std::string(where) + ": callback returned -5", run());
  }
  watch.answer = TREESPEC_STOP;  // a grammar has no say in when to stop
  CHECK_FAILS(TREESPEC_CALLBACK_FAILED, "allow: callback returned 1", run());
  CHECK(result == nullptr);

  draft.forget = true;
  options = initial<treespec_generate_options>(treespec_generate_options_init);
  CHECK_FAILS(TREESPEC_INVALID_ARGUMENT, "DraftModel::draft: source must not be NULL", run());
}

void what_the_decoder_refuses_has_the_text_of_cpp() {
  CTarget target(false);
  TableTarget core(kVocab, kTable);
  const treespec_target_model table = target.table();
  treespec_decoder* decoder = nullptr;
  auto options = initial<treespec_decoder_options>(treespec_decoder_options_init);
  const auto same_text = [&](const DecoderOptions& how) {
    CHECK_EQUAL(treespec_decoder_create(&table, nullptr, &options, &decoder),
                TREESPEC_INVALID_ARGUMENT);
    CHECK_EQUAL(std::string(treespec_last_error()),
                thrown_text<InvalidArgument>([&] { SpeculativeDecoder(core, nullptr, how); }));
    CHECK(decoder == nullptr);
  };
  DecoderOptions how;
  how.verifier = options.verifier = "traversal";
  same_text(how);
  how.builder = options.builder = "no_such";
  same_text(how);
  options = initial<treespec_decoder_options>(treespec_decoder_options_init);
  how = {};
  options.node_budget = how.node_budget = -1;
  same_text(how);

  const auto plain = make_decoder({"", "opt_tree", "", "auto", 0}, target, nullptr);
  treespec_result* result = nullptr;
  const int32_t outside = kVocab;
  CHECK_FAILS(TREESPEC_INVALID_ARGUMENT, "prompt tokens must be in [0, 11), got 11",
              treespec_decoder_generate(plain.get(), &outside, 1, nullptr, &result));
  CHECK_FAILS(TREESPEC_INVALID_ARGUMENT, "prompt must have at least one token",
              treespec_decoder_generate(plain.get(), nullptr, 0, nullptr, &result));
  auto generation = initial<treespec_generate_options>(treespec_generate_options_init);
  generation.max_new_tokens = -1;
  CHECK_FAILS(TREESPEC_INVALID_ARGUMENT, "max_new_tokens must be at least 0",
              treespec_decoder_generate(plain.get(), kPrompt.data(), 5, &generation, &result));

  // What prompt and output need more than a model has room for.
  generation.max_new_tokens = 11;
  treespec_target_model small = table;
  small.max_context = 15;
  const auto limited = make<treespec_decoder>(
      treespec_decoder_create, &small, static_cast<treespec_drafter*>(nullptr),
      static_cast<const treespec_decoder_options*>(nullptr));
  CHECK_FAILS(TREESPEC_INVALID_ARGUMENT, "the target's context of 15 tokens, got 5 + 11",
              treespec_decoder_generate(limited.get(), kPrompt.data(), 5, &generation, &result));
  CDraft draft(target.model);
  treespec_draft_model small_draft = draft.table();
  small_draft.max_context = 15;
  const auto drafter = make<treespec_drafter>(treespec_drafter_create, &small_draft);
  const auto drafting =
      make<treespec_decoder>(treespec_decoder_create, &table, drafter.get(),
                             static_cast<const treespec_decoder_options*>(nullptr));
  CHECK_FAILS(TREESPEC_INVALID_ARGUMENT, "the drafter's context of 15 tokens, got 5 + 11",
              treespec_decoder_generate(drafting.get(), kPrompt.data(), 5, &generation, &result));
  generation.max_new_tokens = 10;
  CHECK_EQUAL(generate(limited.get(), &generation).data.num_token_ids, 10);
  CHECK_EQUAL(generate(drafting.get(), &generation).data.num_token_ids, 10);

  treespec_target_model wrong = table;
  wrong.max_context = -1;
  CHECK_FAILS(TREESPEC_INVALID_ARGUMENT, "target.max_context must be in [0, 2^31), got -1",
              treespec_decoder_create(&wrong, nullptr, nullptr, &decoder));
  wrong = table;
  wrong.vocab_size = 0;
  CHECK_FAILS(TREESPEC_INVALID_ARGUMENT, "target.vocab_size must be in [1, 2^31), got 0",
              treespec_decoder_create(&wrong, nullptr, nullptr, &decoder));
  const auto gives = [&](const char* part,
                         int32_t (*prefill)(void*, const int32_t*, int64_t, treespec_rows*)) {
    wrong = table;
    wrong.prefill = prefill;
    const auto bad = make<treespec_decoder>(treespec_decoder_create, &wrong,
                                            static_cast<treespec_drafter*>(nullptr),
                                            static_cast<const treespec_decoder_options*>(nullptr));
    CHECK_FAILS(TREESPEC_INVALID_ARGUMENT, part,
                treespec_decoder_generate(bad.get(), kPrompt.data(), 5, nullptr, &result));
  };
  gives("TargetModel::prefill: logits.data must not be NULL",
        [](void*, const int32_t*, int64_t, treespec_rows*) { return int32_t{TREESPEC_OK}; });
  gives("TargetModel::prefill: logits: dtype must be",
        [](void*, const int32_t*, int64_t, treespec_rows* logits) {
          logits->data = &kTable;
          logits->dtype = 17;
          return int32_t{TREESPEC_OK};
        });
  gives("TargetModel::prefill: logits must be [1, 11], got [1, 2]",
        [](void*, const int32_t*, int64_t, treespec_rows* logits) {
          logits->data = &kTable;
          logits->width = 2;
          return int32_t{TREESPEC_OK};
        });
}

// --- Loops of one's own --------------------------------------------------------------------------

void a_drafter_drafts_for_loops_of_ones_own() {
  const Tokens text{1, 2, 3, 4, 1, 2, 3, 5, 1, 2};
  for (const char* name : {"ngram", "suffix"}) {
    TableTarget unused(kVocab, kTable);
    CDraft unused_draft(unused);
    const auto drafter = make_drafter(name, unused_draft);
    const auto builder = make<treespec_builder>(treespec_builder_create, "trie",
                                                static_cast<const treespec_options*>(nullptr));
    NgramDraft ngram;
    SuffixDraft suffix;
    DraftModel& core = name == std::string("ngram") ? static_cast<DraftModel&>(ngram) : suffix;
    core.begin(ArrayView<const int32_t>(text.data(), 6), {});
    core.observe(ArrayView<const int32_t>(text.data() + 6, 4), {});
    CHECK_OK(treespec_drafter_begin(drafter.get(), text.data(), 6, nullptr));
    CHECK_OK(treespec_drafter_observe(drafter.get(), text.data() + 6, 4, nullptr));
    auto options = initial<treespec_build_options>(treespec_build_options_init);
    options.node_budget = 6;
    options.max_depth = 3;
    options.root_token = 2;
    const auto tree = make<treespec_tree>(treespec_drafter_build, drafter.get(), builder.get(),
                                          static_cast<const treespec_sampling*>(nullptr), &options);
    const SamplingParams params;
    const TokenTree expected =
        build_tree(*make_builder("trie"), "trie", core.draft({2, {}, 3, 6, params}), 6);
    auto data = sized<treespec_tree_data>();
    CHECK_OK(treespec_tree_get_data(tree.get(), &data));
    CHECK_EQUAL(data.token[0], 2);
    CHECK(expected.num_nodes() > 2);
    CHECK(std::equal(expected.token.begin() + 1, expected.token.end(), data.token + 1,
                     data.token + data.num_nodes));
    CHECK(std::equal(expected.parent.begin(), expected.parent.end(), data.parent,
                     data.parent + data.num_nodes));
  }
}

void where_nothing_could_be_drafted_the_drafter_is_not_asked() {
  TableTarget target(kVocab, kTable);
  CDraft draft(target);
  draft.trap = {"draft", 1};
  const auto drafter = make_drafter("model", draft);
  const auto builder = make<treespec_builder>(treespec_builder_create, "opt_tree",
                                              static_cast<const treespec_options*>(nullptr));
  for (int32_t treespec_build_options::* nothing :
       {&treespec_build_options::node_budget, &treespec_build_options::max_depth}) {
    auto options = initial<treespec_build_options>(treespec_build_options_init);
    options.root_token = 2;
    options.*nothing = 0;
    const auto root = make<treespec_tree>(treespec_drafter_build, drafter.get(), builder.get(),
                                          static_cast<const treespec_sampling*>(nullptr), &options);
    auto data = sized<treespec_tree_data>();
    CHECK_OK(treespec_tree_get_data(root.get(), &data));
    CHECK(data.num_nodes == 1 && data.token[0] == 2);
  }
}

/// A round by hand, without treespec_decoder: the text is that of the decoder.
void a_loop_of_ones_own_gives_the_text_of_the_decoder() {
  constexpr int32_t kMaxNew = 30;
  Tokens kv;
  GenerateOptions core;
  core.seed = 5;
  core.max_new_tokens = kMaxNew;
  const Tokens expected = core_generate({"suffix", "opt_tree", "", "auto", 12}, core, kv).token_ids;

  TableTarget target(kVocab, kTable);
  CDraft unused(target);
  const auto drafter = make_drafter("suffix", unused);
  const auto builder = make<treespec_builder>(treespec_builder_create, "opt_tree",
                                              static_cast<const treespec_options*>(nullptr));
  Tokens text = kPrompt;
  treespec_rows logits = c_rows(target.prefill(text));
  treespec_key key{5, 0, static_cast<uint32_t>(text.size())};
  int32_t token = 0;
  CHECK_OK(treespec_sample(&logits, 0, nullptr, &key, &token));
  CHECK_OK(treespec_drafter_begin(drafter.get(), text.data(), 5, nullptr));
  CHECK_OK(treespec_drafter_observe(drafter.get(), &token, 1, nullptr));
  text.push_back(token);
  while (text.size() < kPrompt.size() + kMaxNew) {
    auto options = initial<treespec_build_options>(treespec_build_options_init);
    const auto prefix = static_cast<int32_t>(text.size()) - 1;
    options.node_budget = 12;
    options.max_depth = static_cast<int32_t>(kPrompt.size() + kMaxNew - text.size()) - 1;
    options.root_token = text.back();
    options.key = key = {5, 0, static_cast<uint32_t>(prefix)};
    const auto tree = make<treespec_tree>(treespec_drafter_build, drafter.get(), builder.get(),
                                          static_cast<const treespec_sampling*>(nullptr), &options);
    auto data = sized<treespec_tree_data>();
    CHECK_OK(treespec_tree_get_data(tree.get(), &data));
    const auto n = static_cast<size_t>(data.num_nodes);
    std::vector<int32_t> positions(n), nodes(n + 1), tokens(n);
    std::vector<uint32_t> bits(n * ((n + 31) / 32));
    CHECK_OK(treespec_positions(tree.get(), prefix, positions.data(), data.num_nodes));
    CHECK_OK(treespec_mask_bits(tree.get(), bits.data(), static_cast<int64_t>(bits.size())));
    TokenTree core_tree;
    core_tree.token.assign(data.token, data.token + n);
    core_tree.parent.assign(data.parent, data.parent + n);
    complete_tree(core_tree);
    logits = c_rows(target.forward({core_tree, positions, bits, prefix}));
    auto verify = sized<treespec_verify_options>();
    verify.key = key;
    auto verdict = sized<treespec_verdict>();
    verdict.accepted_nodes = nodes.data() + 1;  // behind the root
    verdict.tokens = tokens.data();
    verdict.capacity = data.num_nodes;
    CHECK_OK(treespec_verify_logits(tree.get(), &logits, nullptr, nullptr, &verify, &verdict));
    target.commit(ArrayView<const int32_t>(nodes.data(), verdict.num_accepted + 1));
    CHECK_OK(
        treespec_drafter_observe(drafter.get(), tokens.data(), verdict.num_accepted + 1, nullptr));
    text.insert(text.end(), tokens.begin(), tokens.begin() + verdict.num_accepted + 1);
  }
  CHECK(Tokens(text.begin() + 5, text.end()) == expected);
}

void decoders_run_in_threads_of_their_own() {
  const Recipe recipe{"model", "dyspec", "", "auto", 8};
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      CTarget target(true);
      CDraft draft(target.model);
      const auto drafter = make_drafter("model", draft);
      const auto decoder = make_decoder(recipe, target, drafter.get());
      for (uint64_t seed = 0; seed < 20; ++seed) {
        auto options = initial<treespec_generate_options>(treespec_generate_options_init);
        options.seed = seed;
        options.max_new_tokens = 20;
        GenerateOptions core;
        core.seed = seed;
        core.max_new_tokens = 20;
        Tokens kv;
        const Tokens expected = core_generate(recipe, core, kv).token_ids;
        const CResult result = generate(decoder.get(), &options);
        if (Tokens(result.data.token_ids, result.data.token_ids + result.data.num_token_ids) !=
            expected) {
          ++wrong[t];
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const int count : wrong) CHECK_EQUAL(count, 0);
}

}  // namespace

int main() {
  texts_and_counters_are_those_of_the_cpp_decoder();
  without_options_all_is_as_in_cpp();
  stops_streams_and_grammars_are_those_of_the_cpp_decoder();
  a_failing_callback_ends_the_generation_and_the_next_one_starts_afresh();
  what_the_decoder_refuses_has_the_text_of_cpp();
  a_drafter_drafts_for_loops_of_ones_own();
  where_nothing_could_be_drafted_the_drafter_is_not_asked();
  a_loop_of_ones_own_gives_the_text_of_the_decoder();
  decoders_run_in_threads_of_their_own();
  return 0;
}
