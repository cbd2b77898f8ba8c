// SPDX-License-Identifier: Apache-2.0
// What the border keeps out: bad arguments, structs of other releases, failures of callbacks.
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "c_api/c_calls.h"
#include "c_api/random_cases.h"
#include "c_api/structs.h"
#include "check.h"
#include "treespec/treespec.h"
#include "treespec/treespec_c.h"

namespace {

using namespace treespec;        // NOLINT
using namespace treespec::test;  // NOLINT

constexpr int32_t kVocab = 4;

/// Sound arguments of every call, to be broken one by one.
struct Sound {
  Sound()
      : model(1, kVocab),
        scores(model),
        options(make<treespec_options>(treespec_options_create)),
        builder(make<treespec_builder>(treespec_builder_create, "opt_tree", options.get())),
        source(make<treespec_source>(treespec_marginals_create, token, logprob, int64_t{2},
                                     int64_t{2})),
        tree(make<treespec_tree>(treespec_tree_build, builder.get(), source.get(),
                                 static_cast<const treespec_build_options*>(nullptr))),
        growth(make<treespec_growth>(treespec_growth_create, builder.get(),
                                     static_cast<const treespec_build_options*>(nullptr))),
        drafter(make<treespec_drafter>(treespec_ngram_drafter_create,
                                       static_cast<const treespec_ngram_options*>(nullptr))) {
    data.struct_size = sizeof(data);
    CHECK_OK(treespec_tree_get_data(tree.get(), &data));
    num_nodes = data.num_nodes;
    CHECK(num_nodes == 7);  // two tokens, each with two below
    probs.assign(static_cast<size_t>(num_nodes * kVocab), 0.25f);
    rows = {probs.data(), TREESPEC_FLOAT32, 0, num_nodes, kVocab, kVocab};
    nodes.assign(static_cast<size_t>(num_nodes), 0);
    verdict.struct_size = sizeof(verdict);
    verdict.accepted_nodes = nodes.data();
    verdict.capacity = num_nodes;
  }

  const int32_t token[4] = {0, 1, 2, 3};
  const float logprob[4] = {-0.5f, -1.0f, -0.4f, -1.2f};
  RandomModel model;
  CModel scores;
  Owned<treespec_options> options;
  Owned<treespec_builder> builder;
  Owned<treespec_source> source;
  Owned<treespec_tree> tree;
  Owned<treespec_growth> growth;
  Owned<treespec_drafter> drafter;
  treespec_tree_data data{};
  int64_t num_nodes = 0;
  std::vector<float> probs;
  std::vector<int32_t> nodes;
  treespec_rows rows{};
  treespec_verdict verdict{};
  treespec_key key{1, 2, 3};
};

#define CHECK_NULL(name, ...) \
  CHECK_FAILS(TREESPEC_INVALID_ARGUMENT, name " must not be NULL", __VA_ARGS__)

void null_is_refused_by_name() {
  Sound s;
  treespec_builder* builder = nullptr;
  treespec_source* source = nullptr;
  treespec_tree* tree = nullptr;
  treespec_growth* growth = nullptr;
  treespec_drafter* drafter = nullptr;
  treespec_decoder* decoder = nullptr;
  treespec_result* result = nullptr;
  int32_t out[64];
  const int64_t one = 1;
  const double real = 0.5;

  CHECK_NULL("options", treespec_options_create(nullptr));
  CHECK_NULL("options", treespec_options_set_integer(nullptr, "x", 1));
  CHECK_NULL("name", treespec_options_set_integer(s.options.get(), nullptr, 1));
  CHECK_NULL("name", treespec_options_set_number(s.options.get(), nullptr, 1.0));
  CHECK_NULL("name", treespec_options_set_text(s.options.get(), nullptr, "x"));
  CHECK_NULL("value", treespec_options_set_text(s.options.get(), "x", nullptr));
  CHECK_NULL("values", treespec_options_set_integers(s.options.get(), "x", nullptr, 1));
  CHECK_NULL("row_sizes", treespec_options_set_table(s.options.get(), "x", &real, nullptr, 1));
  CHECK_NULL("values", treespec_options_set_table(s.options.get(), "x", nullptr, &one, 1));
  CHECK_NULL("name", treespec_builder_create(nullptr, nullptr, &builder));
  CHECK_NULL("builder", treespec_builder_create("opt_tree", nullptr, nullptr));
  auto info = sized<treespec_builder_info>();
  CHECK_NULL("builder", treespec_builder_get_info(nullptr, &info));
  CHECK_NULL("info", treespec_builder_get_info(s.builder.get(), nullptr));

  CHECK_NULL("token", treespec_marginals_create(nullptr, s.logprob, 2, 2, &source));
  CHECK_NULL("logprob", treespec_marginals_create(s.token, nullptr, 2, 2, &source));
  CHECK_NULL("source", treespec_marginals_create(s.token, s.logprob, 2, 2, nullptr));
  CHECK_NULL("logits", treespec_marginals_create_from_logits(nullptr, 2, 1.0, &source));
  CHECK_NULL("next", treespec_transitions_create(s.token, s.logprob, nullptr, 2, 1, 2, &source));
  CHECK_NULL("owner",
             treespec_transitions_create_linked(s.token, s.logprob, nullptr, 2, 1, 2, &source));
  CHECK_NULL("parent", treespec_trie_create(nullptr, s.token, s.logprob, 4, &source));
  CHECK_NULL("expand", treespec_expander_create(nullptr, nullptr, &source));

  CHECK_NULL("builder", treespec_tree_build(nullptr, s.source.get(), nullptr, &tree));
  CHECK_NULL("source", treespec_tree_build(s.builder.get(), nullptr, nullptr, &tree));
  CHECK_NULL("tree", treespec_tree_build(s.builder.get(), s.source.get(), nullptr, nullptr));
  CHECK_NULL("options", treespec_build_options_init(nullptr, 40));
  CHECK_NULL("builder", treespec_growth_create(nullptr, nullptr, &growth));
  CHECK_NULL("growth", treespec_growth_create(s.builder.get(), nullptr, nullptr));
  const treespec_frontier_node* frontier = nullptr;
  int64_t count = 0;
  CHECK_NULL("growth", treespec_growth_get_frontier(nullptr, &frontier, &count));
  CHECK_NULL("nodes", treespec_growth_get_frontier(s.growth.get(), nullptr, &count));
  CHECK_NULL("num_nodes", treespec_growth_get_frontier(s.growth.get(), &frontier, nullptr));
  treespec_candidates none{};
  CHECK_NULL("growth", treespec_growth_supply(nullptr, &none));
  CHECK_NULL("rows", treespec_growth_supply(s.growth.get(), nullptr));
  CHECK_NULL("growth", treespec_growth_finish(nullptr, &tree));
  CHECK_NULL("tree", treespec_growth_finish(s.growth.get(), nullptr));
  CHECK_NULL("tree", treespec_tree_get_data(nullptr, &s.data));
  CHECK_NULL("data", treespec_tree_get_data(s.tree.get(), nullptr));
  CHECK_NULL("data", treespec_tree_create(nullptr, &tree));
  CHECK_NULL("tree", treespec_tree_create(&s.data, nullptr));
  CHECK_NULL("tree", treespec_tree_check(nullptr));

  CHECK_NULL("tree", treespec_mask_bits(nullptr, nullptr, 64));
  CHECK_NULL("out", treespec_mask_bits(s.tree.get(), nullptr, 64));
  CHECK_NULL("tree", treespec_mask_bool(nullptr, 0, 0, 0, nullptr, 64));
  CHECK_NULL("out", treespec_mask_bool(s.tree.get(), 0, 0, 0, nullptr, 64));
  CHECK_NULL("tree", treespec_mask_additive(nullptr, 0, 0, 0, TREESPEC_FLOAT32, out, 64));
  CHECK_NULL("out", treespec_mask_additive(s.tree.get(), 0, 0, 0, TREESPEC_FLOAT32, nullptr, 64));
  CHECK_NULL("tree", treespec_mask_intervals(nullptr, out, out, 64));
  CHECK_NULL("rank", treespec_mask_intervals(s.tree.get(), nullptr, out, 64));
  CHECK_NULL("end", treespec_mask_intervals(s.tree.get(), out, nullptr, 64));
  CHECK_NULL("tree", treespec_mask_sequence_ids(nullptr, out, 64, out, 64));
  CHECK_NULL("offset", treespec_mask_sequence_ids(s.tree.get(), nullptr, 64, out, 64));
  CHECK_NULL("tree", treespec_positions(nullptr, 0, out, 64));
  CHECK_NULL("out", treespec_positions(s.tree.get(), 0, nullptr, 64));

  CHECK_NULL("verifier", treespec_check_verifier(nullptr, TREESPEC_IID, 0, 0));
  CHECK_NULL("sampling", treespec_sampling_init(nullptr, 72));
  CHECK_NULL("tree", treespec_verify(nullptr, &s.rows, nullptr, nullptr, &s.verdict));
  CHECK_NULL("target_probs", treespec_verify(s.tree.get(), nullptr, nullptr, nullptr, &s.verdict));
  CHECK_NULL("verdict", treespec_verify(s.tree.get(), &s.rows, nullptr, nullptr, nullptr));
  CHECK_NULL("tree",
             treespec_verify_logits(nullptr, &s.rows, nullptr, nullptr, nullptr, &s.verdict));
  CHECK_NULL("target_logits",
             treespec_verify_logits(s.tree.get(), nullptr, nullptr, nullptr, nullptr, &s.verdict));
  CHECK_NULL("logits", treespec_sample(nullptr, 0, nullptr, &s.key, out));
  CHECK_NULL("key", treespec_sample(&s.rows, 0, nullptr, nullptr, out));
  CHECK_NULL("token", treespec_sample(&s.rows, 0, nullptr, &s.key, nullptr));
  CHECK_NULL("buffers", treespec_commit_kv(nullptr, 1, 0, s.token, 1));
  CHECK_NULL("nodes", treespec_commit_kv(nullptr, 0, 0, nullptr, 1));

  CHECK_NULL("options", treespec_ngram_options_init(nullptr, 40));
  CHECK_NULL("options", treespec_suffix_options_init(nullptr, 56));
  CHECK_NULL("drafter", treespec_ngram_drafter_create(nullptr, nullptr));
  CHECK_NULL("drafter", treespec_suffix_drafter_create(nullptr, nullptr));
  CHECK_NULL("model", treespec_drafter_create(nullptr, &drafter));
  CHECK_NULL("drafter", treespec_drafter_begin(nullptr, s.token, 1, nullptr));
  CHECK_NULL("prompt", treespec_drafter_begin(s.drafter.get(), nullptr, 1, nullptr));
  CHECK_NULL("drafter", treespec_drafter_observe(nullptr, s.token, 1, nullptr));
  CHECK_NULL("token_ids", treespec_drafter_observe(s.drafter.get(), nullptr, 1, nullptr));
  CHECK_NULL("drafter", treespec_drafter_build(nullptr, s.builder.get(), nullptr, nullptr, &tree));
  CHECK_NULL("builder", treespec_drafter_build(s.drafter.get(), nullptr, nullptr, nullptr, &tree));
  CHECK_NULL("options", treespec_decoder_options_init(nullptr, 40));
  CHECK_NULL("options", treespec_generate_options_init(nullptr, 80));
  CHECK_NULL("target", treespec_decoder_create(nullptr, nullptr, nullptr, &decoder));
  CHECK_NULL("decoder", treespec_decoder_generate(nullptr, s.token, 1, nullptr, &result));
  auto known = sized<treespec_result_data>();
  CHECK_NULL("result", treespec_result_get_data(nullptr, &known));

  auto model = sized<treespec_draft_model>();
  CHECK_NULL("model.begin", treespec_drafter_create(&model, &drafter));
  auto target = sized<treespec_target_model>();
  target.vocab_size = 4;
  CHECK_NULL("target.prefill", treespec_decoder_create(&target, nullptr, nullptr, &decoder));

  CHECK(builder == nullptr && source == nullptr && tree == nullptr && growth == nullptr);
  CHECK(drafter == nullptr && decoder == nullptr && result == nullptr);

  treespec_options_free(nullptr);
  treespec_builder_free(nullptr);
  treespec_source_free(nullptr);
  treespec_growth_free(nullptr);
  treespec_tree_free(nullptr);
  treespec_drafter_free(nullptr);
  treespec_decoder_free(nullptr);
  treespec_result_free(nullptr);
}

void a_failed_call_leaves_null_in_its_handle() {
  auto* builder = reinterpret_cast<treespec_builder*>(1);
  CHECK_FAILS(TREESPEC_INVALID_ARGUMENT, "no_such",
              treespec_builder_create("no_such", nullptr, &builder));
  CHECK(builder == nullptr);
}

void the_text_is_that_of_the_core() {
  treespec_builder* builder = nullptr;
  const auto options = make<treespec_options>(treespec_options_create);
  CHECK_OK(treespec_options_set_text(options.get(), "max_depth", "deep"));
  CHECK_EQUAL(treespec_builder_create("dtree", options.get(), &builder), TREESPEC_INVALID_ARGUMENT);
  CHECK_EQUAL(std::string(treespec_last_error()), thrown_text<InvalidArgument>([] {
                make_builder("dtree", {{"max_depth", std::string("deep")}});
              }));
  CHECK_EQUAL(treespec_builder_create("dtre", nullptr, &builder), TREESPEC_INVALID_ARGUMENT);
  CHECK_EQUAL(std::string(treespec_last_error()),
              thrown_text<InvalidArgument>([] { make_builder("dtre"); }));
  CHECK_EQUAL(treespec_check_verifier("block", TREESPEC_IID, 0, 0), TREESPEC_INVALID_ARGUMENT);
  CHECK_EQUAL(std::string(treespec_last_error()), thrown_text<InvalidArgument>([] {
                check_verifier(verifier_info("block"), Proposal::kIid, false);
              }));
  // An option that is set again counts as it was set last.
  CHECK_OK(treespec_options_set_integer(options.get(), "max_depth", 3));
  CHECK_OK(treespec_builder_create("dtree", options.get(), &builder));
  treespec_builder_free(builder);
}

void values_that_break_a_rule_are_refused() {
  Sound s;
  treespec_source* source = nullptr;
  treespec_tree* tree = nullptr;
  treespec_builder* builder = nullptr;
  treespec_drafter* drafter = nullptr;
  int32_t out[8] = {};
  const auto refuses = [](const char* part, treespec_status status) {
    CHECK_EQUAL(status, TREESPEC_INVALID_ARGUMENT);
    if (std::strstr(treespec_last_error(), part) == nullptr) {
      fail(__FILE__, __LINE__, std::string(part) + " is not in: " + treespec_last_error());
    }
  };

  // Sizes and dtypes.
  refuses("depth must be in [0, 2^31), got -1",
          treespec_marginals_create(s.token, s.logprob, -1, 2, &source));
  refuses("fewer than 2^31 elements",
          treespec_marginals_create(s.token, s.logprob, 1 << 20, 1 << 20, &source));
  refuses("K >= 1", treespec_marginals_create(s.token, s.logprob, 2, 0, &source));
  refuses("depth, num_lists and width must be >= 1",
          treespec_transitions_create_linked(s.token, s.logprob, s.token, 0, 1, 2, &source));
  refuses("parent must have 0 to", treespec_trie_create(s.token, s.token, s.logprob, -1, &source));
  refuses("row_sizes must have 0 to",
          treespec_options_set_table(s.options.get(), "x", nullptr, nullptr, -1));

  const auto with = [&](auto&& change) {
    treespec_rows rows = s.rows;
    change(rows);
    return treespec_verify(s.tree.get(), &rows, nullptr, nullptr, &s.verdict);
  };
  CHECK_OK(with([](treespec_rows&) {}));
  refuses("target_probs: dtype must be TREESPEC_FLOAT32",
          with([](treespec_rows& r) { r.dtype = 4; }));
  refuses("target_probs: dtype must be TREESPEC_FLOAT32",
          with([](treespec_rows& r) { r.dtype = -1; }));
  refuses("dtype must be float32 or float64",
          with([](treespec_rows& r) { r.dtype = TREESPEC_FLOAT16; }));
  refuses("target_probs.reserved must be 0, got 3", with([](treespec_rows& r) { r.reserved = 3; }));
  refuses("target_probs.data must not be NULL", with([](treespec_rows& r) { r.data = nullptr; }));
  refuses("aligned to its elements of 4 bytes",
          with([](treespec_rows& r) { r.data = static_cast<const char*>(r.data) + 1; }));
  refuses("row_stride must be at least the width 4",
          with([](treespec_rows& r) { r.row_stride = 3; }));
  refuses("fit memory", with([](treespec_rows& r) { r.row_stride = INT64_MAX; }));
  refuses("must be [num_rows >= 0", with([](treespec_rows& r) { r.num_rows = -1; }));
  refuses("must be [num_rows >= 0", with([](treespec_rows& r) { r.width = int64_t{1} << 31; }));
  refuses("target_probs: shape must be [7, V >= 1] for 7 nodes, got [6, 4]",
          with([](treespec_rows& r) { r.num_rows = 6; }));

  treespec_rows law = s.rows;
  law.num_rows = 3;
  refuses("draft_probs must be [7, V], got [3, 4]",
          treespec_verify(s.tree.get(), &s.rows, &law, nullptr, &s.verdict));
  law.num_rows = 7;
  law.dtype = TREESPEC_BFLOAT16;
  refuses("draft_probs must be float32 or float64",
          treespec_verify(s.tree.get(), &s.rows, &law, nullptr, &s.verdict));

  // Room.
  s.verdict.capacity = 6;
  refuses("verdict.accepted_nodes must have room for 7 elements, got a capacity of 6",
          treespec_verify(s.tree.get(), &s.rows, nullptr, nullptr, &s.verdict));
  s.verdict.capacity = 7;
  refuses("out must have room for 7", treespec_mask_bits(s.tree.get(), nullptr, 6));
  refuses("out must have room for 40", treespec_mask_bool(s.tree.get(), 3, 3, 0, nullptr, 39));
  refuses("room for 40", treespec_mask_additive(s.tree.get(), 3, 3, 0, TREESPEC_FLOAT32, out, 39));
  refuses("rank must have room for 7", treespec_mask_intervals(s.tree.get(), out, out, 6));
  refuses("offset must have room for 8",
          treespec_mask_sequence_ids(s.tree.get(), out, 7, nullptr, 0));
  refuses("id must have room for 12", treespec_mask_sequence_ids(s.tree.get(), out, 8, out, 8));
  refuses("out must have room for 7", treespec_positions(s.tree.get(), 0, out, 6));
  refuses("first must be in [0, 7], got 8",
          treespec_mask_bool(s.tree.get(), 8, 0, 0, (uint8_t*)out, 8));
  refuses("first must be in", treespec_mask_bool(s.tree.get(), -1, 0, 0, (uint8_t*)out, 1 << 20));
  refuses("prefix_length must be >= 0",
          treespec_mask_bool(s.tree.get(), 6, -1, 0, (uint8_t*)out, 8));
  refuses("window must be >= 0", treespec_mask_bool(s.tree.get(), 6, 0, -1, (uint8_t*)out, 8));
  refuses("dtype must be", treespec_mask_additive(s.tree.get(), 0, 0, 0, 9, out, 64));

  // Names and values.
  auto verify = sized<treespec_verify_options>();
  verify.verifier = "no_such";
  refuses("name must be auto or one of",
          treespec_verify(s.tree.get(), &s.rows, nullptr, &verify, &s.verdict));
  verify.verifier = "typical";
  refuses("lossy", treespec_verify(s.tree.get(), &s.rows, nullptr, &verify, &s.verdict));
  verify.reserved = 1;
  refuses("options.reserved must be 0",
          treespec_verify(s.tree.get(), &s.rows, nullptr, &verify, &s.verdict));
  refuses("proposal must be TREESPEC_DETERMINISTIC", treespec_check_verifier("greedy", 4, 0, 0));
  refuses("source must be one it can read, got Marginals",
          (CHECK_EQUAL(treespec_builder_create("trie", nullptr, &builder), TREESPEC_OK),
           treespec_tree_build(builder, s.source.get(), nullptr, &tree)));
  treespec_growth* growth = nullptr;
  refuses("source must be one it can read, got Expander",
          treespec_growth_create(builder, nullptr, &growth));
  treespec_builder_free(builder);
  auto build = initial<treespec_build_options>(treespec_build_options_init);
  build.node_budget = -1;
  refuses("options.node_budget must be in [0, 2^31), got -1",
          treespec_tree_build(s.builder.get(), s.source.get(), &build, &tree));
  build.node_budget = 4;
  build.max_depth = -2;
  refuses("options.max_depth must be in [0, 2^31), got -2",
          treespec_growth_create(s.builder.get(), &build, &growth));
  build.max_depth = 2;
  build.reserved = 7;
  refuses("options.reserved must be 0, got 7",
          treespec_drafter_build(s.drafter.get(), s.builder.get(), nullptr, &build, &tree));
  refuses("temperature", treespec_marginals_create_from_logits(&s.rows, 2, 0.0, &source));
  refuses("width must be in [1, 2^31), got 0",
          treespec_marginals_create_from_logits(&s.rows, 0, 1.0, &source));

  // Sampling.
  auto sampling = initial<treespec_sampling>(treespec_sampling_init);
  auto processing = sized<treespec_logit_options>();
  processing.sampling = &sampling;
  const auto sample = [&] { return treespec_sample(&s.rows, 0, &processing, &s.key, out); };
  CHECK_OK(sample());
  sampling.top_p = 0.0;
  refuses("top_p must be in (0, 1], got 0", sample());
  sampling.top_p = 1.0;
  sampling.presence_penalty = 0.5;
  refuses("prefix_ids must be given", sample());
  processing.prefix_ids = s.token;
  refuses("prefix_ids must be given", sample());
  processing.num_prefix_ids = 2;
  CHECK_OK(sample());
  processing.prompt_length = 3;
  refuses("prompt_length must be in [0, 2], got 3", sample());
  processing.prompt_length = 0;
  sampling.num_logit_bias = 1;
  refuses("logit_bias must not be NULL", sample());
  const treespec_logit_bias bias{9, 0, 1.0};
  sampling.logit_bias = &bias;
  refuses("logit_bias token must be in [0, 4), got 9", sample());
  sampling.num_logit_bias = -1;
  refuses("logit_bias must have 0 to", sample());
  sampling.num_logit_bias = 0;
  const uint32_t allowed[2] = {1, 1};
  processing.allowed = allowed;
  processing.num_allowed_words = 2;
  refuses("num_allowed_words must be 1 for 1 rows of 4 tokens, got 2", sample());
  processing.allowed = nullptr;
  processing.num_allowed_words = 1;
  refuses("allowed must not be NULL", sample());
  refuses("row must be in [0, 7), got 7", treespec_sample(&s.rows, 7, nullptr, &s.key, out));

  // A cache.
  treespec_kv_buffer buffer{out, 1, 0, 4, 4, 8};
  const int32_t nodes[2] = {0, 8};
  refuses("below the number of rows 8", treespec_commit_kv(&buffer, 1, 0, nodes, 2));
  buffer.outer = -1;
  refuses("must be >= 0, got -1", treespec_commit_kv(&buffer, 1, 0, nodes, 1));
  buffer = {nullptr, 1, 0, 4, 4, 8};
  refuses("data of a buffer must not be NULL", treespec_commit_kv(&buffer, 1, 0, nodes, 1));
  refuses("buffers must have 0 to", treespec_commit_kv(&buffer, -1, 0, nodes, 1));

  // Drafters.
  auto ngram = initial<treespec_ngram_options>(treespec_ngram_options_init);
  ngram.max_ngram = 99;
  refuses("max_ngram", treespec_ngram_drafter_create(&ngram, &drafter));
  auto suffix = initial<treespec_suffix_options>(treespec_suffix_options_init);
  suffix.alpha = -1.0;
  refuses("alpha", treespec_suffix_drafter_create(&suffix, &drafter));
  const int32_t negative = -3;
  refuses("", treespec_drafter_begin(s.drafter.get(), &negative, 1, nullptr));
}

void a_tree_of_ones_own_must_be_sound() {
  Sound s;
  treespec_tree* tree = nullptr;
  const auto refuses = [&](const char* part, auto&& change) {
    treespec_tree_data data = s.data;
    change(data);
    CHECK_FAILS(TREESPEC_INVALID_ARGUMENT, part, treespec_tree_create(&data, &tree));
    CHECK(tree == nullptr);
  };
  const int32_t late[7] = {-1, 0, 0, 1, 1, 6, 2};
  refuses("parent[5] must be in [0, 5), got 6", [&](treespec_tree_data& d) { d.parent = late; });
  refuses("num_nodes must be in [1, 2^31), got 0", [](treespec_tree_data& d) { d.num_nodes = 0; });
  refuses("data.token must not be NULL", [](treespec_tree_data& d) { d.token = nullptr; });
  refuses("data.parent must not be NULL", [](treespec_tree_data& d) { d.parent = nullptr; });
  refuses("data.draw must not be NULL", [](treespec_tree_data& d) { d.draw = nullptr; });
  refuses("draw_offset must ascend", [](treespec_tree_data& d) { d.num_draws -= 1; });
  refuses("proposal must be", [](treespec_tree_data& d) { d.proposal = 9; });
  refuses("data.reserved must be 0", [](treespec_tree_data& d) { d.reserved = 1; });
  refuses("draws must be given", [](treespec_tree_data& d) {
    d.proposal = TREESPEC_IID;
    d.draw_offset = nullptr;
  });
  const int64_t offset[2] = {0, -1};
  int32_t row_of_node[7];
  for (int32_t i = 0; i < 7; ++i) {
    row_of_node[i] = s.data.draw_offset[i] < s.data.draw_offset[i + 1] ? 0 : -1;
  }
  refuses("data.law_token must have 0 to", [&](treespec_tree_data& d) {
    d.law_vocab_size = 4;
    d.num_law_rows = 1;
    d.law_row_of_node = row_of_node;
    d.law_row_offset = offset;
  });

  // Numbers of a law are checked by treespec_tree_check, and by the verifier that reads them.
  const int64_t sound_offset[2] = {0, 2};
  const int32_t law_token[2] = {0, 1};
  const float prob[2] = {0.5f, 0.25f};
  treespec_tree_data data = s.data;
  data.law_vocab_size = 4;
  data.num_law_rows = 1;
  data.law_row_of_node = row_of_node;
  data.law_row_offset = sound_offset;
  data.law_token = law_token;
  data.law_prob = prob;
  const auto made = make<treespec_tree>(treespec_tree_create, &data);
  CHECK_FAILS(TREESPEC_INVALID_ARGUMENT, "must sum to 1 within 0.001, got 0.75",
              treespec_tree_check(made.get()));
}

void candidates_that_break_a_rule_are_refused() {
  Sound s;
  const auto begin = [&] {
    return make<treespec_growth>(treespec_growth_create, s.builder.get(),
                                 static_cast<const treespec_build_options*>(nullptr));
  };
  const float logprob[3] = {-0.5f, -1.0f, -2.0f};
  const int32_t token[3] = {2, 0, 1};
  const auto refuses = [&](const char* part, treespec_candidates rows) {
    const auto growth = begin();
    CHECK_FAILS(TREESPEC_INVALID_ARGUMENT, part, treespec_growth_supply(growth.get(), &rows));
    // What was refused at the border did no harm.
    rows = {logprob, token, 1, 3, 3, 0, 0};
    CHECK_OK(treespec_growth_supply(growth.get(), &rows));
  };
  refuses("rows must be one per frontier node (1), got 2", {logprob, token, 2, 3, 3, 0, 0});
  refuses("rows.width must be in [0, 2^31), got -1", {logprob, token, 1, -1, 3, 0, 0});
  refuses("rows.row_stride must be at least the width 3", {logprob, token, 1, 3, 2, 0, 0});
  refuses("and fit memory", {logprob, token, 1, 3, INT64_MAX, 0, 0});
  refuses("rows.logprob must not be NULL", {nullptr, token, 1, 3, 3, 0, 0});
  refuses("rows.ranked must be 0 or 1, got 2", {logprob, token, 1, 3, 3, 2, 0});
  refuses("rows.reserved must be 0, got 5", {logprob, token, 1, 3, 3, 0, 5});
  const int32_t twice[3] = {2, 0, 2}, negative[3] = {2, -1, 1};
  refuses("tokens of a row must be distinct, got 2 twice in row 0",
          {logprob, twice, 1, 3, 3, 0, 0});
  refuses("token must be in [0, 2^31 - 1), got -1 in row 0", {logprob, negative, 1, 3, 3, 0, 0});
  const float rising[3] = {-1.0f, -0.5f, -2.0f}, tied[3] = {-1.0f, -1.0f, -2.0f};
  const float unknown[3] = {-1.0f, NAN, -2.0f};
  refuses("logprob of ranked rows must fall", {rising, token, 1, 3, 3, 1, 0});
  refuses("logprob of ranked rows must fall", {tied, token, 1, 3, 3, 1, 0});
  refuses("logprob of ranked rows must fall", {unknown, token, 1, 3, 3, 1, 0});

  // What the builder refuses ends the growth.
  for (const float* bad : {unknown, static_cast<const float*>(s.probs.data())}) {
    const auto growth = begin();
    const treespec_candidates rows{bad, nullptr, 1, 3, 3, 0, 0};
    CHECK_FAILS(TREESPEC_INVALID_ARGUMENT, "log-probabilities must be <= 0 and not NaN",
                treespec_growth_supply(growth.get(), &rows));
    treespec_tree* tree = nullptr;
    CHECK_FAILS(TREESPEC_INVALID_ARGUMENT, "must not have failed before",
                treespec_growth_supply(growth.get(), &rows));
    CHECK_FAILS(TREESPEC_INVALID_ARGUMENT, "must not have failed before",
                treespec_growth_finish(growth.get(), &tree));
  }
}

void a_growth_is_finished_once_and_not_before_it_is_grown() {
  Sound s;
  auto options = initial<treespec_build_options>(treespec_build_options_init);
  options.max_depth = 1;
  const auto growth = make<treespec_growth>(treespec_growth_create, s.builder.get(), &options);
  treespec_tree* tree = nullptr;
  CHECK_FAILS(TREESPEC_INVALID_ARGUMENT, "after the frontier is empty",
              treespec_growth_finish(growth.get(), &tree));
  const treespec_candidates rows{s.logprob, nullptr, 1, 4, 4, 0, 0};
  CHECK_OK(treespec_growth_supply(growth.get(), &rows));
  CHECK_FAILS(TREESPEC_INVALID_ARGUMENT, "it takes no more rows",
              treespec_growth_supply(growth.get(), &rows));
  CHECK_OK(treespec_growth_finish(growth.get(), &tree));
  treespec_tree_free(tree);
  CHECK_FAILS(TREESPEC_INVALID_ARGUMENT, "must be called once",
              treespec_growth_finish(growth.get(), &tree));
}

// --- Structs of other releases -------------------------------------------------------------------

/// A struct as a program that was compiled against a later header has it.
template <class T>
struct Newer {
  T known;
  double appended[2];
};

template <class T>
void check_init(treespec_status (*init)(T*, size_t)) {
  Newer<T> newer;
  std::memset(&newer, 0x5a, sizeof(newer));
  CHECK_OK(init(&newer.known, sizeof(newer)));
  CHECK_EQUAL(newer.known.struct_size, sizeof(newer));
  CHECK(newer.appended[0] == 0.0 && newer.appended[1] == 0.0);
  T plain;
  CHECK_OK(init(&plain, sizeof(plain)));
  plain.struct_size = sizeof(newer);
  CHECK(std::memcmp(&plain, &newer.known, sizeof(plain)) == 0);
  for (const size_t size : {size_t{0}, size_t{8}, c::kFirstSize<T> - 1, size_t{1} << 40}) {
    CHECK_FAILS(TREESPEC_INVALID_ARGUMENT, "struct_size must be its sizeof", init(&plain, size));
  }
  CHECK_OK(init(&plain, c::kFirstSize<T>));
}

void init_functions_fill_structs_of_any_release() {
  check_init(treespec_build_options_init);
  check_init(treespec_sampling_init);
  check_init(treespec_ngram_options_init);
  check_init(treespec_suffix_options_init);
  check_init(treespec_decoder_options_init);
  check_init(treespec_generate_options_init);
}

/// `call` with a sound struct, with those of later releases, and with sizes that none has.
template <class T, class Call>
void check_sizes(const T& sound, Call&& call) {
  Newer<T> newer{sound, {0.0, 0.0}};
  CHECK_OK(call(&newer.known));
  newer.known.struct_size = sizeof(newer);
  CHECK_OK(call(&newer.known));
  if constexpr (!std::is_same_v<T, treespec_builder_info> &&
                !std::is_same_v<T, treespec_result_data>) {
    newer.appended[1] = 1.0;
    CHECK_FAILS(TREESPEC_UNSUPPORTED, "does not know", call(&newer.known));
  }
  newer = {sound, {0.0, 0.0}};
  newer.known.struct_size = c::kFirstSize<T>;
  CHECK_OK(call(&newer.known));
  for (const size_t size : {size_t{0}, c::kFirstSize<T> - 1, sizeof(void*), size_t{1} << 40}) {
    newer.known.struct_size = size;
    CHECK_FAILS(TREESPEC_INVALID_ARGUMENT, "struct_size must be its sizeof", call(&newer.known));
  }
}

void structs_of_other_releases_are_understood_or_refused() {
  Sound s;
  treespec_tree* tree = nullptr;
  const auto build = initial<treespec_build_options>(treespec_build_options_init);
  check_sizes(build, [&](const treespec_build_options* options) {
    treespec_tree_free(tree);
    return treespec_tree_build(s.builder.get(), s.source.get(), options, &tree);
  });
  check_sizes(s.data, [&](const treespec_tree_data* data) {
    treespec_tree_free(tree);
    return treespec_tree_create(data, &tree);
  });
  check_sizes(sized<treespec_builder_info>(), [&](treespec_builder_info* info) {
    return treespec_builder_get_info(s.builder.get(), info);
  });
  auto processing = sized<treespec_logit_options>();
  int32_t token = 0;
  check_sizes(processing, [&](const treespec_logit_options* options) {
    return treespec_sample(&s.rows, 0, options, &s.key, &token);
  });
  check_sizes(initial<treespec_sampling>(treespec_sampling_init),
              [&](const treespec_sampling* sampling) {
                processing.sampling = sampling;
                return treespec_sample(&s.rows, 0, &processing, &s.key, &token);
              });
  check_sizes(sized<treespec_verify_options>(), [&](const treespec_verify_options* options) {
    return treespec_verify(s.tree.get(), &s.rows, nullptr, options, &s.verdict);
  });
  check_sizes(s.verdict, [&](treespec_verdict* verdict) {
    return treespec_verify(s.tree.get(), &s.rows, nullptr, nullptr, verdict);
  });
  treespec_drafter* drafter = nullptr;
  check_sizes(initial<treespec_ngram_options>(treespec_ngram_options_init),
              [&](const treespec_ngram_options* o) {
                treespec_drafter_free(drafter);
                return treespec_ngram_drafter_create(o, &drafter);
              });
  check_sizes(initial<treespec_suffix_options>(treespec_suffix_options_init),
              [&](const treespec_suffix_options* o) {
                treespec_drafter_free(drafter);
                return treespec_suffix_drafter_create(o, &drafter);
              });
  auto draft = sized<treespec_draft_model>();
  draft.begin = [](void*, const int32_t*, int64_t, const treespec_rows*) { return int32_t{0}; };
  draft.draft = [](void*, const treespec_draft_request*, treespec_source**) { return int32_t{0}; };
  draft.observe = draft.begin;
  check_sizes(draft, [&](const treespec_draft_model* model) {
    treespec_drafter_free(drafter);
    return treespec_drafter_create(model, &drafter);
  });
  treespec_drafter_free(drafter);
  treespec_decoder* decoder = nullptr;
  auto target = sized<treespec_target_model>();
  target.vocab_size = kVocab;
  target.prefill = [](void*, const int32_t*, int64_t, treespec_rows*) { return int32_t{0}; };
  target.forward = [](void*, const treespec_tree_step*, treespec_rows*) { return int32_t{0}; };
  target.commit = [](void*, const int32_t*, int64_t) { return int32_t{0}; };
  check_sizes(target, [&](const treespec_target_model* model) {
    treespec_decoder_free(decoder);
    return treespec_decoder_create(model, nullptr, nullptr, &decoder);
  });
  check_sizes(initial<treespec_decoder_options>(treespec_decoder_options_init),
              [&](const treespec_decoder_options* options) {
                treespec_decoder_free(decoder);
                return treespec_decoder_create(&target, nullptr, options, &decoder);
              });
  treespec_decoder_free(decoder);
  CHECK_OK(treespec_decoder_create(&target, nullptr, nullptr, &decoder));
  treespec_result* result = nullptr;
  auto generate = initial<treespec_generate_options>(treespec_generate_options_init);
  generate.max_new_tokens = 0;
  check_sizes(generate, [&](const treespec_generate_options* options) {
    treespec_result_free(result);
    return treespec_decoder_generate(decoder, s.token, 1, options, &result);
  });
  CHECK_OK(treespec_decoder_generate(decoder, s.token, 1, &generate, &result));
  check_sizes(sized<treespec_result_data>(),
              [&](treespec_result_data* data) { return treespec_result_get_data(result, data); });
  treespec_result_free(result);
  treespec_decoder_free(decoder);
  treespec_tree_free(tree);
}

/// A struct to which a release has appended a field.
struct Grown {
  size_t struct_size;
  double first;
  double appended;
};

}  // namespace

template <>
inline constexpr size_t treespec::c::kFirstSize<Grown> = 16;

namespace {

void fields_that_an_older_caller_has_not_got_keep_their_defaults() {
  Grown older{16, 2.0, 99.0};  // the last is beyond the caller's struct
  const Grown read = c::read_struct("test", "grown", &older, Grown{0, 1.0, 0.0});
  CHECK(read.struct_size == sizeof(Grown) && read.first == 2.0 && read.appended == 0.0);
  c::write_struct("test", "grown", &older, Grown{0, 3.0, 4.0});
  CHECK(older.struct_size == 16 && older.first == 3.0 && older.appended == 99.0);
  Grown current{sizeof(Grown), 2.0, 5.0};
  CHECK(c::read_struct("test", "grown", &current).appended == 5.0);
  CHECK_THROWS(InvalidArgument, (older.struct_size = 15, c::read_struct("test", "grown", &older)));
}

// --- Callbacks -----------------------------------------------------------------------------------

void a_failure_of_a_callback_comes_out_with_its_text() {
  Sound s;
  treespec_tree* tree = nullptr;
  const auto fails = [&](treespec_expand expand, const char* text, void* user = nullptr) {
    const auto source = make<treespec_source>(treespec_expander_create, expand, user);
    treespec_set_error("of another call");
    CHECK_EQUAL(treespec_tree_build(s.builder.get(), source.get(), nullptr, &tree),
                TREESPEC_CALLBACK_FAILED);
    CHECK_EQUAL(std::string(treespec_last_error()), std::string(text));
    CHECK(tree == nullptr);
  };
  fails([](void*, const treespec_frontier_node*, int64_t,
           treespec_candidates*) { return int32_t{-77}; },
        "expand: callback returned -77");
  fails([](void*, const treespec_frontier_node*, int64_t,
           treespec_candidates*) { return int32_t{TREESPEC_STOP}; },
        "expand: callback returned 1");
  fails(
      [](void*, const treespec_frontier_node*, int64_t, treespec_candidates*) {
        treespec_set_error("the GPU is on fire");
        return int32_t{12};
      },
      "expand: callback returned 12: the GPU is on fire");
  fails(
      [](void*, const treespec_frontier_node*, int64_t, treespec_candidates*) {
        return int32_t{treespec_check_verifier("block", TREESPEC_IID, 0, 0)};
      },
      ("expand: callback returned -1: " + thrown_text<InvalidArgument>([] {
         check_verifier(verifier_info("block"), Proposal::kIid, false);
       })).c_str());

  const auto refused = [&](treespec_expand expand, const char* part) {
    const auto source = make<treespec_source>(treespec_expander_create, expand, nullptr);
    CHECK_FAILS(TREESPEC_INVALID_ARGUMENT, part,
                treespec_tree_build(s.builder.get(), source.get(), nullptr, &tree));
  };
  refused(
      [](void*, const treespec_frontier_node*, int64_t, treespec_candidates* rows) {
        rows->width = 3;
        return int32_t{TREESPEC_OK};
      },
      "expand: rows.row_stride must be at least the width 3");
}

void an_exception_of_a_callback_in_cpp_becomes_a_status() {
  Sound s;
  treespec_tree* tree = nullptr;
  const auto gives = [&](treespec_status status, const char* text, treespec_expand expand) {
    const auto source = make<treespec_source>(treespec_expander_create, expand, nullptr);
    CHECK_EQUAL(treespec_tree_build(s.builder.get(), source.get(), nullptr, &tree), status);
    CHECK_EQUAL(std::string(treespec_last_error()), std::string(text));
  };
  gives(TREESPEC_INTERNAL_ERROR, "thrown",
        [](void*, const treespec_frontier_node*, int64_t, treespec_candidates*) -> int32_t {
          throw std::runtime_error("thrown");
        });
  gives(TREESPEC_INTERNAL_ERROR, "an exception that is no std::exception",
        [](void*, const treespec_frontier_node*, int64_t, treespec_candidates*) -> int32_t {
          throw 3;
        });
  gives(TREESPEC_OUT_OF_MEMORY, "out of memory",
        [](void*, const treespec_frontier_node*, int64_t, treespec_candidates*) -> int32_t {
          throw std::bad_alloc();
        });
}

void the_last_error_is_of_any_length_and_may_be_cleared() {
  CHECK_EQUAL(treespec_tree_check(nullptr), TREESPEC_INVALID_ARGUMENT);
  CHECK_EQUAL(std::string(treespec_last_error()),
              std::string("treespec_tree_check: tree must not be NULL"));
  const std::string longer(5000, 'x');
  treespec_set_error(longer.c_str());
  CHECK_EQUAL(std::string(treespec_last_error()), longer);
  treespec_set_error(nullptr);
  CHECK_EQUAL(std::string(treespec_last_error()), std::string());
}

}  // namespace

int main() {
  null_is_refused_by_name();
  a_failed_call_leaves_null_in_its_handle();
  the_text_is_that_of_the_core();
  values_that_break_a_rule_are_refused();
  a_tree_of_ones_own_must_be_sound();
  candidates_that_break_a_rule_are_refused();
  a_growth_is_finished_once_and_not_before_it_is_grown();
  init_functions_fill_structs_of_any_release();
  structs_of_other_releases_are_understood_or_refused();
  fields_that_an_older_caller_has_not_got_keep_their_defaults();
  a_failure_of_a_callback_comes_out_with_its_text();
  an_exception_of_a_callback_in_cpp_becomes_a_status();
  the_last_error_is_of_any_length_and_may_be_cleared();
  return 0;
}
