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

VALUE(TREESPEC_OK, 0);
VALUE(TREESPEC_STOP, 1);
VALUE(TREESPEC_INVALID_ARGUMENT, -1);
VALUE(TREESPEC_UNSUPPORTED, -2);
VALUE(TREESPEC_OUT_OF_MEMORY, -3);
VALUE(TREESPEC_CALLBACK_FAILED, -4);
VALUE(TREESPEC_INTERNAL_ERROR, -5);
VALUE(TREESPEC_FLOAT32, 0);
VALUE(TREESPEC_FLOAT64, 1);
VALUE(TREESPEC_FLOAT16, 2);
VALUE(TREESPEC_BFLOAT16, 3);
VALUE(TREESPEC_DETERMINISTIC, 0);
VALUE(TREESPEC_IID, 1);
VALUE(TREESPEC_WITHOUT_REPLACEMENT, 2);
VALUE(TREESPEC_TOP_PLUS_ONE, 3);
VALUE(TREESPEC_MARGINALS, 0);
VALUE(TREESPEC_TRANSITIONS, 1);
VALUE(TREESPEC_EXPANDER, 2);
VALUE(TREESPEC_TRIE, 3);
VALUE(TREESPEC_REASON_MAX_TOKENS, 0);
VALUE(TREESPEC_REASON_STOP_TOKEN, 1);
VALUE(TREESPEC_REASON_STOP_CONDITION, 2);
VALUE(TREESPEC_REASON_CANCELLED, 3);

TYPE(treespec_status, int32_t);
TYPE(treespec_dtype, int32_t);
TYPE(treespec_proposal, int32_t);
TYPE(treespec_source_kind, int32_t);
TYPE(treespec_stop_reason, int32_t);
TYPE(treespec_expand,
     int32_t (*)(void*, const treespec_frontier_node*, int64_t, treespec_candidates*));

// --- Structs, on machines with 64 bits -----------------------------------------------------------

#if UINTPTR_MAX == 0xffffffffffffffffu

SIZE(treespec_key, 16);
FIELD(treespec_key, seed, 0, uint64_t);
FIELD(treespec_key, sequence_id, 8, uint32_t);
FIELD(treespec_key, position, 12, uint32_t);

SIZE(treespec_rows, 40);
FIELD(treespec_rows, data, 0, const void*);
FIELD(treespec_rows, dtype, 8, treespec_dtype);
FIELD(treespec_rows, reserved, 12, int32_t);
FIELD(treespec_rows, num_rows, 16, int64_t);
FIELD(treespec_rows, width, 24, int64_t);
FIELD(treespec_rows, row_stride, 32, int64_t);

SIZE(treespec_frontier_node, 16);
FIELD(treespec_frontier_node, index, 0, int32_t);
FIELD(treespec_frontier_node, parent, 4, int32_t);
FIELD(treespec_frontier_node, token, 8, int32_t);
FIELD(treespec_frontier_node, depth, 12, int32_t);

SIZE(treespec_candidates, 48);
FIELD(treespec_candidates, logprob, 0, const float*);
FIELD(treespec_candidates, token, 8, const int32_t*);
FIELD(treespec_candidates, num_rows, 16, int64_t);
FIELD(treespec_candidates, width, 24, int64_t);
FIELD(treespec_candidates, row_stride, 32, int64_t);
FIELD(treespec_candidates, ranked, 40, int32_t);
FIELD(treespec_candidates, reserved, 44, int32_t);

SIZE(treespec_builder_info, 24);
FIELD(treespec_builder_info, struct_size, 0, size_t);
FIELD(treespec_builder_info, proposal, 8, treespec_proposal);
FIELD(treespec_builder_info, makes_chains, 12, int32_t);
FIELD(treespec_builder_info, source_kinds, 16, uint32_t);
FIELD(treespec_builder_info, reserved, 20, int32_t);

SIZE(treespec_build_options, 40);
FIELD(treespec_build_options, struct_size, 0, size_t);
FIELD(treespec_build_options, node_budget, 8, int32_t);
FIELD(treespec_build_options, max_depth, 12, int32_t);
FIELD(treespec_build_options, root_token, 16, int32_t);
FIELD(treespec_build_options, reserved, 20, int32_t);
FIELD(treespec_build_options, key, 24, treespec_key);

SIZE(treespec_tree_data, 128);
FIELD(treespec_tree_data, struct_size, 0, size_t);
FIELD(treespec_tree_data, num_nodes, 8, int64_t);
FIELD(treespec_tree_data, token, 16, const int32_t*);
FIELD(treespec_tree_data, parent, 24, const int32_t*);
FIELD(treespec_tree_data, depth, 32, const int32_t*);
FIELD(treespec_tree_data, path_logprob, 40, const float*);
FIELD(treespec_tree_data, draw_offset, 48, const int32_t*);
FIELD(treespec_tree_data, draw, 56, const int32_t*);
FIELD(treespec_tree_data, num_draws, 64, int64_t);
FIELD(treespec_tree_data, law_vocab_size, 72, int64_t);
FIELD(treespec_tree_data, num_law_rows, 80, int64_t);
FIELD(treespec_tree_data, law_row_of_node, 88, const int32_t*);
FIELD(treespec_tree_data, law_row_offset, 96, const int64_t*);
FIELD(treespec_tree_data, law_token, 104, const int32_t*);
FIELD(treespec_tree_data, law_prob, 112, const float*);
FIELD(treespec_tree_data, proposal, 120, treespec_proposal);
FIELD(treespec_tree_data, reserved, 124, int32_t);

SIZE(treespec_logit_bias, 16);
FIELD(treespec_logit_bias, token, 0, int32_t);
FIELD(treespec_logit_bias, reserved, 4, int32_t);
FIELD(treespec_logit_bias, bias, 8, double);

SIZE(treespec_sampling, 72);
FIELD(treespec_sampling, struct_size, 0, size_t);
FIELD(treespec_sampling, temperature, 8, double);
FIELD(treespec_sampling, top_p, 16, double);
FIELD(treespec_sampling, min_p, 24, double);
FIELD(treespec_sampling, repetition_penalty, 32, double);
FIELD(treespec_sampling, presence_penalty, 40, double);
FIELD(treespec_sampling, frequency_penalty, 48, double);
FIELD(treespec_sampling, logit_bias, 56, const treespec_logit_bias*);
FIELD(treespec_sampling, num_logit_bias, 64, int32_t);
FIELD(treespec_sampling, top_k, 68, int32_t);

SIZE(treespec_logit_options, 56);
FIELD(treespec_logit_options, struct_size, 0, size_t);
FIELD(treespec_logit_options, sampling, 8, const treespec_sampling*);
FIELD(treespec_logit_options, prefix_ids, 16, const int32_t*);
FIELD(treespec_logit_options, num_prefix_ids, 24, int64_t);
FIELD(treespec_logit_options, prompt_length, 32, int64_t);
FIELD(treespec_logit_options, allowed, 40, const uint32_t*);
FIELD(treespec_logit_options, num_allowed_words, 48, int64_t);

SIZE(treespec_verify_options, 40);
FIELD(treespec_verify_options, struct_size, 0, size_t);
FIELD(treespec_verify_options, verifier, 8, const char*);
FIELD(treespec_verify_options, key, 16, treespec_key);
FIELD(treespec_verify_options, lossy, 32, int32_t);
FIELD(treespec_verify_options, reserved, 36, int32_t);

SIZE(treespec_verdict, 40);
FIELD(treespec_verdict, struct_size, 0, size_t);
FIELD(treespec_verdict, accepted_nodes, 8, int32_t*);
FIELD(treespec_verdict, tokens, 16, int32_t*);
FIELD(treespec_verdict, capacity, 24, int64_t);
FIELD(treespec_verdict, num_accepted, 32, int32_t);
FIELD(treespec_verdict, next_token, 36, int32_t);

SIZE(treespec_kv_buffer, 48);
FIELD(treespec_kv_buffer, data, 0, void*);
FIELD(treespec_kv_buffer, outer, 8, int64_t);
FIELD(treespec_kv_buffer, outer_stride, 16, int64_t);
FIELD(treespec_kv_buffer, row_stride, 24, int64_t);
FIELD(treespec_kv_buffer, row_bytes, 32, int64_t);
FIELD(treespec_kv_buffer, num_rows, 40, int64_t);

SIZE(treespec_ngram_options, 40);
FIELD(treespec_ngram_options, struct_size, 0, size_t);
FIELD(treespec_ngram_options, kappa, 8, double);
FIELD(treespec_ngram_options, recency, 16, double);
FIELD(treespec_ngram_options, max_ngram, 24, int32_t);
FIELD(treespec_ngram_options, min_ngram, 28, int32_t);
FIELD(treespec_ngram_options, max_hits, 32, int32_t);
FIELD(treespec_ngram_options, reserved, 36, int32_t);

SIZE(treespec_suffix_options, 56);
FIELD(treespec_suffix_options, struct_size, 0, size_t);
FIELD(treespec_suffix_options, alpha, 8, double);
FIELD(treespec_suffix_options, beta, 16, double);
FIELD(treespec_suffix_options, min_token_prob, 24, double);
FIELD(treespec_suffix_options, kappa, 32, double);
FIELD(treespec_suffix_options, max_match, 40, int32_t);
FIELD(treespec_suffix_options, max_depth, 44, int32_t);
FIELD(treespec_suffix_options, max_children, 48, int32_t);
FIELD(treespec_suffix_options, reserved, 52, int32_t);

SIZE(treespec_draft_request, 48);
FIELD(treespec_draft_request, struct_size, 0, size_t);
FIELD(treespec_draft_request, key, 8, treespec_key);
FIELD(treespec_draft_request, root_token, 24, int32_t);
FIELD(treespec_draft_request, max_depth, 28, int32_t);
FIELD(treespec_draft_request, node_budget, 32, int32_t);
FIELD(treespec_draft_request, proposal, 36, treespec_proposal);
FIELD(treespec_draft_request, sampling, 40, const treespec_sampling*);

SIZE(treespec_draft_model, 56);
FIELD(treespec_draft_model, struct_size, 0, size_t);
FIELD(treespec_draft_model, user, 8, void*);
FIELD(treespec_draft_model, vocab_size, 16, int64_t);
FIELD(treespec_draft_model, max_context, 24, int64_t);
FIELD(treespec_draft_model, begin, 32,
      int32_t (*)(void*, const int32_t*, int64_t, const treespec_rows*));
FIELD(treespec_draft_model, draft, 40,
      int32_t (*)(void*, const treespec_draft_request*, treespec_source**));
FIELD(treespec_draft_model, observe, 48,
      int32_t (*)(void*, const int32_t*, int64_t, const treespec_rows*));

SIZE(treespec_tree_step, 64);
FIELD(treespec_tree_step, struct_size, 0, size_t);
FIELD(treespec_tree_step, tree, 8, const treespec_tree*);
FIELD(treespec_tree_step, num_nodes, 16, int64_t);
FIELD(treespec_tree_step, token, 24, const int32_t*);
FIELD(treespec_tree_step, parent, 32, const int32_t*);
FIELD(treespec_tree_step, position, 40, const int32_t*);
FIELD(treespec_tree_step, ancestor_bits, 48, const uint32_t*);
FIELD(treespec_tree_step, prefix_length, 56, int64_t);

SIZE(treespec_target_model, 64);
FIELD(treespec_target_model, struct_size, 0, size_t);
FIELD(treespec_target_model, user, 8, void*);
FIELD(treespec_target_model, vocab_size, 16, int64_t);
FIELD(treespec_target_model, max_context, 24, int64_t);
FIELD(treespec_target_model, prefill, 32,
      int32_t (*)(void*, const int32_t*, int64_t, treespec_rows*));
FIELD(treespec_target_model, forward, 40,
      int32_t (*)(void*, const treespec_tree_step*, treespec_rows*));
FIELD(treespec_target_model, commit, 48, int32_t (*)(void*, const int32_t*, int64_t));
FIELD(treespec_target_model, states, 56, int32_t (*)(void*, treespec_rows*));

SIZE(treespec_decoder_options, 40);
FIELD(treespec_decoder_options, struct_size, 0, size_t);
FIELD(treespec_decoder_options, builder, 8, const char*);
FIELD(treespec_decoder_options, builder_options, 16, const treespec_options*);
FIELD(treespec_decoder_options, verifier, 24, const char*);
FIELD(treespec_decoder_options, node_budget, 32, int32_t);
FIELD(treespec_decoder_options, lossy, 36, int32_t);

SIZE(treespec_generate_options, 80);
FIELD(treespec_generate_options, struct_size, 0, size_t);
FIELD(treespec_generate_options, max_new_tokens, 8, int32_t);
FIELD(treespec_generate_options, sequence_id, 12, uint32_t);
FIELD(treespec_generate_options, seed, 16, uint64_t);
FIELD(treespec_generate_options, sampling, 24, const treespec_sampling*);
FIELD(treespec_generate_options, stop_token_ids, 32, const int32_t*);
FIELD(treespec_generate_options, num_stop_token_ids, 40, int64_t);
FIELD(treespec_generate_options, user, 48, void*);
FIELD(treespec_generate_options, stop_when, 56, int32_t (*)(void*, const int32_t*, int64_t));
FIELD(treespec_generate_options, on_tokens, 64, int32_t (*)(void*, const int32_t*, int64_t));
FIELD(treespec_generate_options, allow, 72,
      int32_t (*)(void*, const treespec_tree*, const int32_t*, int64_t, uint32_t*, int64_t));

SIZE(treespec_result_data, 144);
FIELD(treespec_result_data, struct_size, 0, size_t);
FIELD(treespec_result_data, token_ids, 8, const int32_t*);
FIELD(treespec_result_data, num_token_ids, 16, int64_t);
FIELD(treespec_result_data, rounds, 24, int64_t);
FIELD(treespec_result_data, emitted_tokens, 32, int64_t);
FIELD(treespec_result_data, drafted_nodes, 40, int64_t);
FIELD(treespec_result_data, accepted_by_depth, 48, const int64_t*);
FIELD(treespec_result_data, num_depths, 56, int64_t);
FIELD(treespec_result_data, accepted_by_rank, 64, const int64_t*);
FIELD(treespec_result_data, num_ranks, 72, int64_t);
FIELD(treespec_result_data, prefill_seconds, 80, double);
FIELD(treespec_result_data, step_seconds, 88, double[6]);
FIELD(treespec_result_data, stop_reason, 136, treespec_stop_reason);
FIELD(treespec_result_data, reserved, 140, int32_t);

#endif

// --- Functions, declared once more as they were --------------------------------------------------

TREESPEC_API uint32_t treespec_abi_version(void);
TREESPEC_API const char* treespec_version(void);
TREESPEC_API const char* treespec_last_error(void);
TREESPEC_API void treespec_set_error(const char* text);
TREESPEC_API int64_t treespec_num_builders(void);
TREESPEC_API const char* treespec_builder_name(int64_t i);
TREESPEC_API const char* treespec_builder_summary(int64_t i);
TREESPEC_API treespec_status treespec_options_create(treespec_options** options);
TREESPEC_API void treespec_options_free(treespec_options* options);
TREESPEC_API treespec_status treespec_options_set_integer(treespec_options* options,
                                                          const char* name, int64_t value);
TREESPEC_API treespec_status treespec_options_set_number(treespec_options* options,
                                                         const char* name, double value);
TREESPEC_API treespec_status treespec_options_set_text(treespec_options* options, const char* name,
                                                       const char* value);
TREESPEC_API treespec_status treespec_options_set_integers(treespec_options* options,
                                                           const char* name, const int64_t* values,
                                                           int64_t size);
TREESPEC_API treespec_status treespec_options_set_table(treespec_options* options, const char* name,
                                                        const double* values,
                                                        const int64_t* row_sizes, int64_t num_rows);
TREESPEC_API treespec_status treespec_builder_create(const char* name,
                                                     const treespec_options* options,
                                                     treespec_builder** builder);
TREESPEC_API void treespec_builder_free(treespec_builder* builder);
TREESPEC_API treespec_status treespec_builder_get_info(const treespec_builder* builder,
                                                       treespec_builder_info* info);
TREESPEC_API treespec_status treespec_marginals_create(const int32_t* token, const float* logprob,
                                                       int64_t depth, int64_t width,
                                                       treespec_source** source);
TREESPEC_API treespec_status treespec_marginals_create_from_logits(const treespec_rows* logits,
                                                                   int64_t width,
                                                                   double temperature,
                                                                   treespec_source** source);
TREESPEC_API treespec_status treespec_transitions_create(const int32_t* token, const float* logprob,
                                                         const int32_t* next, int64_t depth,
                                                         int64_t num_lists, int64_t width,
                                                         treespec_source** source);
TREESPEC_API treespec_status treespec_transitions_create_linked(const int32_t* token,
                                                                const float* logprob,
                                                                const int32_t* owner, int64_t depth,
                                                                int64_t num_lists, int64_t width,
                                                                treespec_source** source);
TREESPEC_API treespec_status treespec_trie_create(const int32_t* parent, const int32_t* token,
                                                  const float* logprob, int64_t size,
                                                  treespec_source** source);
TREESPEC_API treespec_status treespec_expander_create(treespec_expand expand, void* user,
                                                      treespec_source** source);
TREESPEC_API void treespec_source_free(treespec_source* source);
TREESPEC_API treespec_status treespec_build_options_init(treespec_build_options* options,
                                                         size_t struct_size);
TREESPEC_API treespec_status treespec_tree_build(const treespec_builder* builder,
                                                 treespec_source* source,
                                                 const treespec_build_options* options,
                                                 treespec_tree** tree);
TREESPEC_API treespec_status treespec_growth_create(const treespec_builder* builder,
                                                    const treespec_build_options* options,
                                                    treespec_growth** growth);
TREESPEC_API void treespec_growth_free(treespec_growth* growth);
TREESPEC_API treespec_status treespec_growth_get_frontier(const treespec_growth* growth,
                                                          const treespec_frontier_node** nodes,
                                                          int64_t* num_nodes);
TREESPEC_API treespec_status treespec_growth_supply(treespec_growth* growth,
                                                    const treespec_candidates* rows);
TREESPEC_API treespec_status treespec_growth_finish(treespec_growth* growth, treespec_tree** tree);
TREESPEC_API treespec_status treespec_tree_get_data(const treespec_tree* tree,
                                                    treespec_tree_data* data);
TREESPEC_API treespec_status treespec_tree_create(const treespec_tree_data* data,
                                                  treespec_tree** tree);
TREESPEC_API void treespec_tree_free(treespec_tree* tree);
TREESPEC_API treespec_status treespec_tree_check(const treespec_tree* tree);
TREESPEC_API treespec_status treespec_mask_bits(const treespec_tree* tree, uint32_t* out,
                                                int64_t capacity);
TREESPEC_API treespec_status treespec_mask_bool(const treespec_tree* tree, int32_t first,
                                                int32_t prefix_length, int32_t window, uint8_t* out,
                                                int64_t capacity);
TREESPEC_API treespec_status treespec_mask_additive(const treespec_tree* tree, int32_t first,
                                                    int32_t prefix_length, int32_t window,
                                                    treespec_dtype dtype, void* out,
                                                    int64_t capacity);
TREESPEC_API treespec_status treespec_mask_intervals(const treespec_tree* tree, int32_t* rank,
                                                     int32_t* end, int64_t capacity);
TREESPEC_API treespec_status treespec_mask_sequence_ids(const treespec_tree* tree, int32_t* offset,
                                                        int64_t offset_capacity, int32_t* id,
                                                        int64_t id_capacity);
TREESPEC_API treespec_status treespec_positions(const treespec_tree* tree, int32_t prefix_length,
                                                int32_t* out, int64_t capacity);
TREESPEC_API int64_t treespec_num_verifiers(void);
TREESPEC_API const char* treespec_verifier_name(int64_t i);
TREESPEC_API const char* treespec_verifier_summary(int64_t i);
TREESPEC_API const char* treespec_auto_verifier(treespec_proposal proposal, int32_t greedy);
TREESPEC_API treespec_status treespec_check_verifier(const char* verifier,
                                                     treespec_proposal proposal, int32_t chain,
                                                     int32_t lossy);
TREESPEC_API treespec_status treespec_sampling_init(treespec_sampling* sampling,
                                                    size_t struct_size);
TREESPEC_API treespec_status treespec_verify(const treespec_tree* tree,
                                             const treespec_rows* target_probs,
                                             const treespec_rows* draft_probs,
                                             const treespec_verify_options* options,
                                             treespec_verdict* verdict);
TREESPEC_API treespec_status treespec_verify_logits(const treespec_tree* tree,
                                                    const treespec_rows* target_logits,
                                                    const treespec_rows* draft_probs,
                                                    const treespec_logit_options* processing,
                                                    const treespec_verify_options* options,
                                                    treespec_verdict* verdict);
TREESPEC_API treespec_status treespec_sample(const treespec_rows* logits, int64_t row,
                                             const treespec_logit_options* processing,
                                             const treespec_key* key, int32_t* token);
TREESPEC_API treespec_status treespec_commit_kv(const treespec_kv_buffer* buffers,
                                                int64_t num_buffers, int64_t base,
                                                const int32_t* nodes, int64_t num_nodes);
TREESPEC_API treespec_status treespec_ngram_options_init(treespec_ngram_options* options,
                                                         size_t struct_size);
TREESPEC_API treespec_status treespec_suffix_options_init(treespec_suffix_options* options,
                                                          size_t struct_size);
TREESPEC_API treespec_status treespec_ngram_drafter_create(const treespec_ngram_options* options,
                                                           treespec_drafter** drafter);
TREESPEC_API treespec_status treespec_suffix_drafter_create(const treespec_suffix_options* options,
                                                            treespec_drafter** drafter);
TREESPEC_API treespec_status treespec_drafter_create(const treespec_draft_model* model,
                                                     treespec_drafter** drafter);
TREESPEC_API void treespec_drafter_free(treespec_drafter* drafter);
TREESPEC_API treespec_status treespec_drafter_begin(treespec_drafter* drafter,
                                                    const int32_t* prompt, int64_t prompt_length,
                                                    const treespec_rows* states);
TREESPEC_API treespec_status treespec_drafter_observe(treespec_drafter* drafter,
                                                      const int32_t* token_ids,
                                                      int64_t num_token_ids,
                                                      const treespec_rows* states);
TREESPEC_API treespec_status treespec_drafter_build(treespec_drafter* drafter,
                                                    const treespec_builder* builder,
                                                    const treespec_sampling* sampling,
                                                    const treespec_build_options* options,
                                                    treespec_tree** tree);
TREESPEC_API treespec_status treespec_decoder_options_init(treespec_decoder_options* options,
                                                           size_t struct_size);
TREESPEC_API treespec_status treespec_decoder_create(const treespec_target_model* target,
                                                     treespec_drafter* drafter,
                                                     const treespec_decoder_options* options,
                                                     treespec_decoder** decoder);
TREESPEC_API void treespec_decoder_free(treespec_decoder* decoder);
TREESPEC_API treespec_status treespec_generate_options_init(treespec_generate_options* options,
                                                            size_t struct_size);
TREESPEC_API treespec_status treespec_decoder_generate(const treespec_decoder* decoder,
                                                       const int32_t* prompt, int64_t prompt_length,
                                                       const treespec_generate_options* options,
                                                       treespec_result** result);
TREESPEC_API treespec_status treespec_result_get_data(const treespec_result* result,
                                                      treespec_result_data* data);
TREESPEC_API void treespec_result_free(treespec_result* result);

int main(void) { return treespec_abi_version() == TREESPEC_C_ABI_VERSION ? 0 : 1; }
