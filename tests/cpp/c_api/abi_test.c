// SPDX-License-Identifier: Apache-2.0
// The binary interface of ABI version 1, on record. This file does not compile when a struct, a
// value or a function of the header is no longer what callers were compiled against.
//
// Appending a field to a struct that begins with struct_size, or adding a value or a function, is
// no break: add it here. For anything else raise TREESPEC_C_ABI_VERSION, rename the version in
// cpp/src/c_api/exports.map, and record the new interface here.
#include <stddef.h>
#include <stdint.h>

#include "treespec/treespec_c.h"

#if TREESPEC_C_ABI_VERSION != 1
#error "record the interface of the new ABI version"
#endif

#define NAME_AT(line) record_at_line_##line
#define RECORD_AT(line, condition) typedef char NAME_AT(line)[(condition) ? 1 : -1]
#define RECORD_ON(line, condition) RECORD_AT(line, condition)
#define RECORD(condition) RECORD_ON(__LINE__, condition)
#define VALUE(name, value) RECORD((name) == (value))
#define TYPE(name, ...) RECORD(__builtin_types_compatible_p(name, __VA_ARGS__))
#define SIZE(type, size) RECORD(sizeof(type) == (size))
#define FIELD(type, field, offset, ...)       \
  RECORD(offsetof(type, field) == (offset) && \
         __builtin_types_compatible_p(__typeof__(((type*)0)->field), __VA_ARGS__))

// --- Values --------------------------------------------------------------------------------------

VALUE(TS_OK, 0);
VALUE(TS_STOP, 1);
VALUE(TS_INVALID_ARGUMENT, -1);
VALUE(TS_UNSUPPORTED, -2);
VALUE(TS_OUT_OF_MEMORY, -3);
VALUE(TS_CALLBACK_FAILED, -4);
VALUE(TS_INTERNAL_ERROR, -5);
VALUE(TS_FLOAT32, 0);
VALUE(TS_FLOAT64, 1);
VALUE(TS_FLOAT16, 2);
VALUE(TS_BFLOAT16, 3);
VALUE(TS_DETERMINISTIC, 0);
VALUE(TS_IID, 1);
VALUE(TS_WITHOUT_REPLACEMENT, 2);
VALUE(TS_TOP_PLUS_ONE, 3);
VALUE(TS_MARGINALS, 0);
VALUE(TS_TRANSITIONS, 1);
VALUE(TS_EXPANDER, 2);
VALUE(TS_TRIE, 3);
VALUE(TS_REASON_MAX_TOKENS, 0);
VALUE(TS_REASON_STOP_TOKEN, 1);
VALUE(TS_REASON_STOP_CONDITION, 2);
VALUE(TS_REASON_CANCELLED, 3);

TYPE(ts_status, int32_t);
TYPE(ts_dtype, int32_t);
TYPE(ts_proposal, int32_t);
TYPE(ts_source_kind, int32_t);
TYPE(ts_stop_reason, int32_t);
TYPE(ts_expand, int32_t (*)(void*, const ts_frontier_node*, int64_t, ts_candidates*));

// --- Structs, on machines with 64 bits -----------------------------------------------------------

#if UINTPTR_MAX == 0xffffffffffffffffu

SIZE(ts_key, 16);
FIELD(ts_key, seed, 0, uint64_t);
FIELD(ts_key, sequence_id, 8, uint32_t);
FIELD(ts_key, position, 12, uint32_t);

SIZE(ts_rows, 40);
FIELD(ts_rows, data, 0, const void*);
FIELD(ts_rows, dtype, 8, ts_dtype);
FIELD(ts_rows, reserved, 12, int32_t);
FIELD(ts_rows, num_rows, 16, int64_t);
FIELD(ts_rows, width, 24, int64_t);
FIELD(ts_rows, row_stride, 32, int64_t);

SIZE(ts_frontier_node, 16);
FIELD(ts_frontier_node, index, 0, int32_t);
FIELD(ts_frontier_node, parent, 4, int32_t);
FIELD(ts_frontier_node, token, 8, int32_t);
FIELD(ts_frontier_node, depth, 12, int32_t);

SIZE(ts_candidates, 48);
FIELD(ts_candidates, logprob, 0, const float*);
FIELD(ts_candidates, token, 8, const int32_t*);
FIELD(ts_candidates, num_rows, 16, int64_t);
FIELD(ts_candidates, width, 24, int64_t);
FIELD(ts_candidates, row_stride, 32, int64_t);
FIELD(ts_candidates, ranked, 40, int32_t);
FIELD(ts_candidates, reserved, 44, int32_t);

SIZE(ts_builder_info, 24);
FIELD(ts_builder_info, struct_size, 0, size_t);
FIELD(ts_builder_info, proposal, 8, ts_proposal);
FIELD(ts_builder_info, makes_chains, 12, int32_t);
FIELD(ts_builder_info, source_kinds, 16, uint32_t);
FIELD(ts_builder_info, reserved, 20, int32_t);

SIZE(ts_build_options, 40);
FIELD(ts_build_options, struct_size, 0, size_t);
FIELD(ts_build_options, node_budget, 8, int32_t);
FIELD(ts_build_options, max_depth, 12, int32_t);
FIELD(ts_build_options, root_token, 16, int32_t);
FIELD(ts_build_options, reserved, 20, int32_t);
FIELD(ts_build_options, key, 24, ts_key);

SIZE(ts_tree_data, 128);
FIELD(ts_tree_data, struct_size, 0, size_t);
FIELD(ts_tree_data, num_nodes, 8, int64_t);
FIELD(ts_tree_data, token, 16, const int32_t*);
FIELD(ts_tree_data, parent, 24, const int32_t*);
FIELD(ts_tree_data, depth, 32, const int32_t*);
FIELD(ts_tree_data, path_logprob, 40, const float*);
FIELD(ts_tree_data, draw_offset, 48, const int32_t*);
FIELD(ts_tree_data, draw, 56, const int32_t*);
FIELD(ts_tree_data, num_draws, 64, int64_t);
FIELD(ts_tree_data, law_vocab_size, 72, int64_t);
FIELD(ts_tree_data, num_law_rows, 80, int64_t);
FIELD(ts_tree_data, law_row_of_node, 88, const int32_t*);
FIELD(ts_tree_data, law_row_offset, 96, const int64_t*);
FIELD(ts_tree_data, law_token, 104, const int32_t*);
FIELD(ts_tree_data, law_prob, 112, const float*);
FIELD(ts_tree_data, proposal, 120, ts_proposal);
FIELD(ts_tree_data, reserved, 124, int32_t);

SIZE(ts_logit_bias, 16);
FIELD(ts_logit_bias, token, 0, int32_t);
FIELD(ts_logit_bias, reserved, 4, int32_t);
FIELD(ts_logit_bias, bias, 8, double);

SIZE(ts_sampling, 72);
FIELD(ts_sampling, struct_size, 0, size_t);
FIELD(ts_sampling, temperature, 8, double);
FIELD(ts_sampling, top_p, 16, double);
FIELD(ts_sampling, min_p, 24, double);
FIELD(ts_sampling, repetition_penalty, 32, double);
FIELD(ts_sampling, presence_penalty, 40, double);
FIELD(ts_sampling, frequency_penalty, 48, double);
FIELD(ts_sampling, logit_bias, 56, const ts_logit_bias*);
FIELD(ts_sampling, num_logit_bias, 64, int32_t);
FIELD(ts_sampling, top_k, 68, int32_t);

SIZE(ts_logit_options, 56);
FIELD(ts_logit_options, struct_size, 0, size_t);
FIELD(ts_logit_options, sampling, 8, const ts_sampling*);
FIELD(ts_logit_options, prefix_ids, 16, const int32_t*);
FIELD(ts_logit_options, num_prefix_ids, 24, int64_t);
FIELD(ts_logit_options, prompt_length, 32, int64_t);
FIELD(ts_logit_options, allowed, 40, const uint32_t*);
FIELD(ts_logit_options, num_allowed_words, 48, int64_t);

SIZE(ts_verify_options, 40);
FIELD(ts_verify_options, struct_size, 0, size_t);
FIELD(ts_verify_options, verifier, 8, const char*);
FIELD(ts_verify_options, key, 16, ts_key);
FIELD(ts_verify_options, lossy, 32, int32_t);
FIELD(ts_verify_options, reserved, 36, int32_t);

SIZE(ts_verdict, 40);
FIELD(ts_verdict, struct_size, 0, size_t);
FIELD(ts_verdict, accepted_nodes, 8, int32_t*);
FIELD(ts_verdict, tokens, 16, int32_t*);
FIELD(ts_verdict, capacity, 24, int64_t);
FIELD(ts_verdict, num_accepted, 32, int32_t);
FIELD(ts_verdict, next_token, 36, int32_t);

SIZE(ts_kv_buffer, 48);
FIELD(ts_kv_buffer, data, 0, void*);
FIELD(ts_kv_buffer, outer, 8, int64_t);
FIELD(ts_kv_buffer, outer_stride, 16, int64_t);
FIELD(ts_kv_buffer, row_stride, 24, int64_t);
FIELD(ts_kv_buffer, row_bytes, 32, int64_t);
FIELD(ts_kv_buffer, num_rows, 40, int64_t);

SIZE(ts_ngram_options, 40);
FIELD(ts_ngram_options, struct_size, 0, size_t);
FIELD(ts_ngram_options, kappa, 8, double);
FIELD(ts_ngram_options, recency, 16, double);
FIELD(ts_ngram_options, max_ngram, 24, int32_t);
FIELD(ts_ngram_options, min_ngram, 28, int32_t);
FIELD(ts_ngram_options, max_hits, 32, int32_t);
FIELD(ts_ngram_options, reserved, 36, int32_t);

SIZE(ts_suffix_options, 56);
FIELD(ts_suffix_options, struct_size, 0, size_t);
FIELD(ts_suffix_options, alpha, 8, double);
FIELD(ts_suffix_options, beta, 16, double);
FIELD(ts_suffix_options, min_token_prob, 24, double);
FIELD(ts_suffix_options, kappa, 32, double);
FIELD(ts_suffix_options, max_match, 40, int32_t);
FIELD(ts_suffix_options, max_depth, 44, int32_t);
FIELD(ts_suffix_options, max_children, 48, int32_t);
FIELD(ts_suffix_options, reserved, 52, int32_t);

SIZE(ts_draft_request, 48);
FIELD(ts_draft_request, struct_size, 0, size_t);
FIELD(ts_draft_request, key, 8, ts_key);
FIELD(ts_draft_request, root_token, 24, int32_t);
FIELD(ts_draft_request, max_depth, 28, int32_t);
FIELD(ts_draft_request, node_budget, 32, int32_t);
FIELD(ts_draft_request, proposal, 36, ts_proposal);
FIELD(ts_draft_request, sampling, 40, const ts_sampling*);

SIZE(ts_draft_model, 56);
FIELD(ts_draft_model, struct_size, 0, size_t);
FIELD(ts_draft_model, user, 8, void*);
FIELD(ts_draft_model, vocab_size, 16, int64_t);
FIELD(ts_draft_model, max_context, 24, int64_t);
FIELD(ts_draft_model, begin, 32, int32_t (*)(void*, const int32_t*, int64_t, const ts_rows*));
FIELD(ts_draft_model, draft, 40, int32_t (*)(void*, const ts_draft_request*, ts_source**));
FIELD(ts_draft_model, observe, 48, int32_t (*)(void*, const int32_t*, int64_t, const ts_rows*));

SIZE(ts_tree_step, 64);
FIELD(ts_tree_step, struct_size, 0, size_t);
FIELD(ts_tree_step, tree, 8, const ts_tree*);
FIELD(ts_tree_step, num_nodes, 16, int64_t);
FIELD(ts_tree_step, token, 24, const int32_t*);
FIELD(ts_tree_step, parent, 32, const int32_t*);
FIELD(ts_tree_step, position, 40, const int32_t*);
FIELD(ts_tree_step, ancestor_bits, 48, const uint32_t*);
FIELD(ts_tree_step, prefix_length, 56, int64_t);

SIZE(ts_target_model, 64);
FIELD(ts_target_model, struct_size, 0, size_t);
FIELD(ts_target_model, user, 8, void*);
FIELD(ts_target_model, vocab_size, 16, int64_t);
FIELD(ts_target_model, max_context, 24, int64_t);
FIELD(ts_target_model, prefill, 32, int32_t (*)(void*, const int32_t*, int64_t, ts_rows*));
FIELD(ts_target_model, forward, 40, int32_t (*)(void*, const ts_tree_step*, ts_rows*));
FIELD(ts_target_model, commit, 48, int32_t (*)(void*, const int32_t*, int64_t));
FIELD(ts_target_model, states, 56, int32_t (*)(void*, ts_rows*));

SIZE(ts_decoder_options, 40);
FIELD(ts_decoder_options, struct_size, 0, size_t);
FIELD(ts_decoder_options, builder, 8, const char*);
FIELD(ts_decoder_options, builder_options, 16, const ts_options*);
FIELD(ts_decoder_options, verifier, 24, const char*);
FIELD(ts_decoder_options, node_budget, 32, int32_t);
FIELD(ts_decoder_options, lossy, 36, int32_t);

SIZE(ts_generate_options, 80);
FIELD(ts_generate_options, struct_size, 0, size_t);
FIELD(ts_generate_options, max_new_tokens, 8, int32_t);
FIELD(ts_generate_options, sequence_id, 12, uint32_t);
FIELD(ts_generate_options, seed, 16, uint64_t);
FIELD(ts_generate_options, sampling, 24, const ts_sampling*);
FIELD(ts_generate_options, stop_token_ids, 32, const int32_t*);
FIELD(ts_generate_options, num_stop_token_ids, 40, int64_t);
FIELD(ts_generate_options, user, 48, void*);
FIELD(ts_generate_options, stop_when, 56, int32_t (*)(void*, const int32_t*, int64_t));
FIELD(ts_generate_options, on_tokens, 64, int32_t (*)(void*, const int32_t*, int64_t));
FIELD(ts_generate_options, allow, 72,
      int32_t (*)(void*, const ts_tree*, const int32_t*, int64_t, uint32_t*, int64_t));

SIZE(ts_result_data, 144);
FIELD(ts_result_data, struct_size, 0, size_t);
FIELD(ts_result_data, token_ids, 8, const int32_t*);
FIELD(ts_result_data, num_token_ids, 16, int64_t);
FIELD(ts_result_data, rounds, 24, int64_t);
FIELD(ts_result_data, emitted_tokens, 32, int64_t);
FIELD(ts_result_data, drafted_nodes, 40, int64_t);
FIELD(ts_result_data, accepted_by_depth, 48, const int64_t*);
FIELD(ts_result_data, num_depths, 56, int64_t);
FIELD(ts_result_data, accepted_by_rank, 64, const int64_t*);
FIELD(ts_result_data, num_ranks, 72, int64_t);
FIELD(ts_result_data, prefill_seconds, 80, double);
FIELD(ts_result_data, step_seconds, 88, double[6]);
FIELD(ts_result_data, stop_reason, 136, ts_stop_reason);
FIELD(ts_result_data, reserved, 140, int32_t);

#endif

// --- Functions, declared once more as they were --------------------------------------------------

TS_API uint32_t ts_abi_version(void);
TS_API const char* ts_version(void);
TS_API const char* ts_last_error(void);
TS_API void ts_set_error(const char* text);
TS_API int64_t ts_num_builders(void);
TS_API const char* ts_builder_name(int64_t i);
TS_API const char* ts_builder_summary(int64_t i);
TS_API ts_status ts_options_create(ts_options** options);
TS_API void ts_options_free(ts_options* options);
TS_API ts_status ts_options_set_integer(ts_options* options, const char* name, int64_t value);
TS_API ts_status ts_options_set_number(ts_options* options, const char* name, double value);
TS_API ts_status ts_options_set_text(ts_options* options, const char* name, const char* value);
TS_API ts_status ts_options_set_integers(ts_options* options, const char* name,
                                         const int64_t* values, int64_t size);
TS_API ts_status ts_options_set_table(ts_options* options, const char* name, const double* values,
                                      const int64_t* row_sizes, int64_t num_rows);
TS_API ts_status ts_builder_create(const char* name, const ts_options* options,
                                   ts_builder** builder);
TS_API void ts_builder_free(ts_builder* builder);
TS_API ts_status ts_builder_get_info(const ts_builder* builder, ts_builder_info* info);
TS_API ts_status ts_marginals_create(const int32_t* token, const float* logprob, int64_t depth,
                                     int64_t width, ts_source** source);
TS_API ts_status ts_marginals_create_from_logits(const ts_rows* logits, int64_t width,
                                                 double temperature, ts_source** source);
TS_API ts_status ts_transitions_create(const int32_t* token, const float* logprob,
                                       const int32_t* next, int64_t depth, int64_t num_lists,
                                       int64_t width, ts_source** source);
TS_API ts_status ts_transitions_create_linked(const int32_t* token, const float* logprob,
                                              const int32_t* owner, int64_t depth,
                                              int64_t num_lists, int64_t width, ts_source** source);
TS_API ts_status ts_trie_create(const int32_t* parent, const int32_t* token, const float* logprob,
                                int64_t size, ts_source** source);
TS_API ts_status ts_expander_create(ts_expand expand, void* user, ts_source** source);
TS_API void ts_source_free(ts_source* source);
TS_API ts_status ts_build_options_init(ts_build_options* options, size_t struct_size);
TS_API ts_status ts_tree_build(const ts_builder* builder, ts_source* source,
                               const ts_build_options* options, ts_tree** tree);
TS_API ts_status ts_growth_create(const ts_builder* builder, const ts_build_options* options,
                                  ts_growth** growth);
TS_API void ts_growth_free(ts_growth* growth);
TS_API ts_status ts_growth_get_frontier(const ts_growth* growth, const ts_frontier_node** nodes,
                                        int64_t* num_nodes);
TS_API ts_status ts_growth_supply(ts_growth* growth, const ts_candidates* rows);
TS_API ts_status ts_growth_finish(ts_growth* growth, ts_tree** tree);
TS_API ts_status ts_tree_get_data(const ts_tree* tree, ts_tree_data* data);
TS_API ts_status ts_tree_create(const ts_tree_data* data, ts_tree** tree);
TS_API void ts_tree_free(ts_tree* tree);
TS_API ts_status ts_tree_check(const ts_tree* tree);
TS_API ts_status ts_mask_bits(const ts_tree* tree, uint32_t* out, int64_t capacity);
TS_API ts_status ts_mask_bool(const ts_tree* tree, int32_t first, int32_t prefix_length,
                              int32_t window, uint8_t* out, int64_t capacity);
TS_API ts_status ts_mask_additive(const ts_tree* tree, int32_t first, int32_t prefix_length,
                                  int32_t window, ts_dtype dtype, void* out, int64_t capacity);
TS_API ts_status ts_mask_intervals(const ts_tree* tree, int32_t* rank, int32_t* end,
                                   int64_t capacity);
TS_API ts_status ts_mask_sequence_ids(const ts_tree* tree, int32_t* offset, int64_t offset_capacity,
                                      int32_t* id, int64_t id_capacity);
TS_API ts_status ts_positions(const ts_tree* tree, int32_t prefix_length, int32_t* out,
                              int64_t capacity);
TS_API int64_t ts_num_verifiers(void);
TS_API const char* ts_verifier_name(int64_t i);
TS_API const char* ts_verifier_summary(int64_t i);
TS_API const char* ts_auto_verifier(ts_proposal proposal, int32_t greedy);
TS_API ts_status ts_check_verifier(const char* verifier, ts_proposal proposal, int32_t chain,
                                   int32_t lossy);
TS_API ts_status ts_sampling_init(ts_sampling* sampling, size_t struct_size);
TS_API ts_status ts_verify(const ts_tree* tree, const ts_rows* target_probs,
                           const ts_rows* draft_probs, const ts_verify_options* options,
                           ts_verdict* verdict);
TS_API ts_status ts_verify_logits(const ts_tree* tree, const ts_rows* target_logits,
                                  const ts_rows* draft_probs, const ts_logit_options* processing,
                                  const ts_verify_options* options, ts_verdict* verdict);
TS_API ts_status ts_sample(const ts_rows* logits, int64_t row, const ts_logit_options* processing,
                           const ts_key* key, int32_t* token);
TS_API ts_status ts_commit_kv(const ts_kv_buffer* buffers, int64_t num_buffers, int64_t base,
                              const int32_t* nodes, int64_t num_nodes);
TS_API ts_status ts_ngram_options_init(ts_ngram_options* options, size_t struct_size);
TS_API ts_status ts_suffix_options_init(ts_suffix_options* options, size_t struct_size);
TS_API ts_status ts_ngram_drafter_create(const ts_ngram_options* options, ts_drafter** drafter);
TS_API ts_status ts_suffix_drafter_create(const ts_suffix_options* options, ts_drafter** drafter);
TS_API ts_status ts_drafter_create(const ts_draft_model* model, ts_drafter** drafter);
TS_API void ts_drafter_free(ts_drafter* drafter);
TS_API ts_status ts_drafter_begin(ts_drafter* drafter, const int32_t* prompt, int64_t prompt_length,
                                  const ts_rows* states);
TS_API ts_status ts_drafter_observe(ts_drafter* drafter, const int32_t* token_ids,
                                    int64_t num_token_ids, const ts_rows* states);
TS_API ts_status ts_drafter_build(ts_drafter* drafter, const ts_builder* builder,
                                  const ts_sampling* sampling, const ts_build_options* options,
                                  ts_tree** tree);
TS_API ts_status ts_decoder_options_init(ts_decoder_options* options, size_t struct_size);
TS_API ts_status ts_decoder_create(const ts_target_model* target, ts_drafter* drafter,
                                   const ts_decoder_options* options, ts_decoder** decoder);
TS_API void ts_decoder_free(ts_decoder* decoder);
TS_API ts_status ts_generate_options_init(ts_generate_options* options, size_t struct_size);
TS_API ts_status ts_decoder_generate(const ts_decoder* decoder, const int32_t* prompt,
                                     int64_t prompt_length, const ts_generate_options* options,
                                     ts_result** result);
TS_API ts_status ts_result_get_data(const ts_result* result, ts_result_data* data);
TS_API void ts_result_free(ts_result* result);

int main(void) { return ts_abi_version() == TREESPEC_C_ABI_VERSION ? 0 : 1; }
