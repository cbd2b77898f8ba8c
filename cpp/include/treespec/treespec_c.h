// SPDX-License-Identifier: Apache-2.0
// The C API, for every language that can call C99: the steps of a round as functions on arrays in
// host memory, and the decoder over models given as callbacks. docs/c_api.md has an example.
//
// calls      Return TREESPEC_OK or a negative status and throw nothing; treespec_last_error() has
//            the text. A call that failed has written nothing but NULL into the handle it would
//            have made.
// handles    Made by NAME_create and the like, freed by NAME_free, which takes NULL. Reading calls
//            (const handles) may run in several threads at once, the others in one at a time.
// structs    One that begins with `struct_size` may grow at its end: set that to its sizeof, and
//            what you do not use to 0 (or call its _init). Fields that the library does not know
//            must be 0. All other structs, and all values, stay as they are within an ABI version.
// arrays     Row-major, borrowed for the call unless a comment says otherwise; NULL where there are
//            no elements. `capacity` is how many elements an output has room for.
// strings    UTF-8, zero-terminated, copied.
// callbacks  Run in the thread of the call. They return TREESPEC_OK, or TREESPEC_STOP where a
//            comment admits it; any other value makes the call fail with TREESPEC_CALLBACK_FAILED
//            and a text that ends with that of treespec_set_error or of the function that failed
//            inside. They may call functions of this header, and must not unwind the stack past the
//            library.
//
// Words and axis letters are those of docs/architecture.md: N nodes, the root included; V tokens.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define TREESPEC_API __attribute__((visibility("default")))
#else
#define TREESPEC_API
#endif

/// Grows when something that was there changes or goes away, not when something is added. Part of
/// the shared library's name (libtreespec_c.so.1).
#define TREESPEC_C_ABI_VERSION 1

#ifdef __cplusplus
extern "C" {
#endif

// --- Values --------------------------------------------------------------------------------------

typedef int32_t treespec_status;
enum {
  TREESPEC_OK = 0,
  TREESPEC_STOP = 1,               ///< a callback's wish, where it may have one; no call returns it
  TREESPEC_INVALID_ARGUMENT = -1,  ///< an argument breaks a rule; the text names both and the value
  TREESPEC_UNSUPPORTED = -2,       ///< this library lacks what was asked for
  TREESPEC_OUT_OF_MEMORY = -3,
  TREESPEC_CALLBACK_FAILED = -4,
  TREESPEC_INTERNAL_ERROR = -5,
};

typedef int32_t treespec_dtype;
enum { TREESPEC_FLOAT32 = 0, TREESPEC_FLOAT64 = 1, TREESPEC_FLOAT16 = 2, TREESPEC_BFLOAT16 = 3 };

/// How drafted tokens came about; decides which verifiers are lossless.
typedef int32_t treespec_proposal;
enum {
  TREESPEC_DETERMINISTIC = 0,        ///< a function of the context: top-k
  TREESPEC_IID = 1,                  ///< independent draws with multiplicity
  TREESPEC_WITHOUT_REPLACEMENT = 2,  ///< ordered draws, each from the law without those before
  TREESPEC_TOP_PLUS_ONE = 3,         ///< the likeliest ones and, last, one draw from the rest
};

typedef int32_t treespec_source_kind;
enum { TREESPEC_MARGINALS = 0, TREESPEC_TRANSITIONS = 1, TREESPEC_EXPANDER = 2, TREESPEC_TRIE = 3 };

typedef int32_t treespec_stop_reason;
enum {
  TREESPEC_REASON_MAX_TOKENS = 0,
  TREESPEC_REASON_STOP_TOKEN = 1,
  TREESPEC_REASON_STOP_CONDITION = 2,
  TREESPEC_REASON_CANCELLED = 3,
};

typedef struct treespec_options treespec_options;  ///< options of a builder, by name
typedef struct treespec_builder treespec_builder;  ///< a stateless recipe of trees
typedef struct treespec_source treespec_source;    ///< candidates for a builder
typedef struct treespec_growth treespec_growth;    ///< a tree being grown
typedef struct treespec_tree treespec_tree;        ///< the draft tree of a round, immutable
typedef struct treespec_drafter treespec_drafter;  ///< a drafter with the state of one sequence
typedef struct treespec_decoder treespec_decoder;  ///< a recipe over a target and a drafter
typedef struct treespec_result treespec_result;    ///< what a generation gave

/// Names a round: everything random in it is a function of these and of counters.
typedef struct treespec_key {
  uint64_t seed;
  uint32_t sequence_id;
  uint32_t position;  ///< absolute position of the round's root
} treespec_key;

/// Rows `[num_rows, width]`; the elements of a row are contiguous.
typedef struct treespec_rows {
  const void* data;
  treespec_dtype dtype;
  int32_t reserved;  ///< 0
  int64_t num_rows;
  int64_t width;
  int64_t row_stride;  ///< elements between the starts of two rows, at least `width`
} treespec_rows;

/// A node whose children a builder wants to see.
typedef struct treespec_frontier_node {
  int32_t index;  ///< order of first hand-over in this growth; the root is 0 and comes first, alone
  int32_t parent;  ///< its parent's index, -1 for the root
  int32_t token;
  int32_t depth;  ///< 0 for the root
} treespec_frontier_node;

/// Possible children of some nodes, a row each, `[num_rows, width]`.
typedef struct treespec_candidates {
  const float* logprob;  ///< natural logarithm given the node, <= 0; -inf is "impossible"
  const int32_t* token;  ///< distinct in a row; NULL: candidate j is token j
  int64_t num_rows;
  int64_t width;
  int64_t row_stride;  ///< elements between the starts of two rows, at least `width`
  int32_t ranked;      ///< 1: logprob falls in a row, equal ones by ascending token
  int32_t reserved;    ///< 0
} treespec_candidates;

// --- Library -------------------------------------------------------------------------------------

/// The TREESPEC_C_ABI_VERSION that the library was built with.
TREESPEC_API uint32_t treespec_abi_version(void);
/// `major.minor.patch` of the library.
TREESPEC_API const char* treespec_version(void);
/// Why the last call of this thread failed; valid until its next one. The texts are those of the
/// C++ exceptions.
TREESPEC_API const char* treespec_last_error(void);
/// For callbacks: the reason of the failure that they are about to return. Copied.
TREESPEC_API void treespec_set_error(const char* text);

// --- Builders ------------------------------------------------------------------------------------

TREESPEC_API int64_t treespec_num_builders(void);
/// Row `i` of the table of builders; NULL outside it.
TREESPEC_API const char* treespec_builder_name(int64_t i);
TREESPEC_API const char* treespec_builder_summary(int64_t i);

TREESPEC_API treespec_status treespec_options_create(treespec_options** options);
TREESPEC_API void treespec_options_free(treespec_options* options);
/// Sets an option; one that was set before is replaced. docs/builders.md lists them all. What a
/// builder does not know, it refuses in treespec_builder_create.
TREESPEC_API treespec_status treespec_options_set_integer(treespec_options* options,
                                                          const char* name, int64_t value);
TREESPEC_API treespec_status treespec_options_set_number(treespec_options* options,
                                                         const char* name, double value);
TREESPEC_API treespec_status treespec_options_set_text(treespec_options* options, const char* name,
                                                       const char* value);
TREESPEC_API treespec_status treespec_options_set_integers(treespec_options* options,
                                                           const char* name, const int64_t* values,
                                                           int64_t size);
/// `num_rows` rows one after the other in `values`, row r of `row_sizes[r]` numbers.
TREESPEC_API treespec_status treespec_options_set_table(treespec_options* options, const char* name,
                                                        const double* values,
                                                        const int64_t* row_sizes, int64_t num_rows);

/// `options` may be NULL, and may be freed or changed afterwards.
TREESPEC_API treespec_status treespec_builder_create(const char* name,
                                                     const treespec_options* options,
                                                     treespec_builder** builder);
TREESPEC_API void treespec_builder_free(treespec_builder* builder);

typedef struct treespec_builder_info {
  size_t struct_size;
  treespec_proposal proposal;  ///< of its trees
  int32_t makes_chains;        ///< 1: every tree is a chain
  uint32_t source_kinds;       ///< bit k: it reads sources of treespec_source_kind k
  int32_t reserved;
} treespec_builder_info;
TREESPEC_API treespec_status treespec_builder_get_info(const treespec_builder* builder,
                                                       treespec_builder_info* info);

// --- Sources -------------------------------------------------------------------------------------

/// Depth-wise lists `[depth, width]` of one-pass drafters; the tokens of a list are distinct, an
/// entry of logprob -inf is padding. Copied, like all arrays of this section.
TREESPEC_API treespec_status treespec_marginals_create(const int32_t* token, const float* logprob,
                                                       int64_t depth, int64_t width,
                                                       treespec_source** source);
/// The `width` likeliest tokens of each row of `logits` `[depth, V]`, of any dtype, under
/// softmax(logits / temperature).
TREESPEC_API treespec_status treespec_marginals_create_from_logits(const treespec_rows* logits,
                                                                   int64_t width,
                                                                   double temperature,
                                                                   treespec_source** source);
/// Lists `[depth, num_lists, width]` that depend on the token before: `next[d, r, k]` is the list
/// of depth d + 1 that continues this candidate, -1 for a leaf. Depth 0 has list 0 only.
TREESPEC_API treespec_status treespec_transitions_create(const int32_t* token, const float* logprob,
                                                         const int32_t* next, int64_t depth,
                                                         int64_t num_lists, int64_t width,
                                                         treespec_source** source);
/// Transitions of a drafter that conditions on the token before and on nothing earlier: `token`,
/// `logprob` `[1 + (depth - 1) * num_lists, width]`, the root's list first; `owner`
/// `[depth - 1, num_lists]`: the token below which a list stands, none if negative.
TREESPEC_API treespec_status treespec_transitions_create_linked(const int32_t* token,
                                                                const float* logprob,
                                                                const int32_t* owner, int64_t depth,
                                                                int64_t num_lists, int64_t width,
                                                                treespec_source** source);
/// Scored nodes of n-grams, suffixes and retrieval: parents come first, -1 is the root, `logprob`
/// is conditional on the parent.
TREESPEC_API treespec_status treespec_trie_create(const int32_t* parent, const int32_t* token,
                                                  const float* logprob, int64_t size,
                                                  treespec_source** source);

/// Scores the children of `nodes`, whose parents were all handed over before. `rows` comes zeroed,
/// with `num_rows` set; its arrays must live until the next call or the end of the growth.
typedef int32_t (*treespec_expand)(void* user, const treespec_frontier_node* nodes,
                                   int64_t num_nodes, treespec_candidates* rows);
/// A source that asks a model.
TREESPEC_API treespec_status treespec_expander_create(treespec_expand expand, void* user,
                                                      treespec_source** source);
TREESPEC_API void treespec_source_free(treespec_source* source);

// --- Trees ---------------------------------------------------------------------------------------

typedef struct treespec_build_options {
  size_t struct_size;
  int32_t node_budget;  ///< the most drafted nodes, the root not counted; _init: 32
  int32_t max_depth;    ///< of the deepest node; _init: INT32_MAX
  int32_t root_token;   ///< the last committed token
  int32_t reserved;
  treespec_key key;  ///< of drawn trees
} treespec_build_options;
TREESPEC_API treespec_status treespec_build_options_init(treespec_build_options* options,
                                                         size_t struct_size);

/// Grows a tree over a source. `options` NULL: those of _init.
TREESPEC_API treespec_status treespec_tree_build(const treespec_builder* builder,
                                                 treespec_source* source,
                                                 const treespec_build_options* options,
                                                 treespec_tree** tree);

/// Grows a tree step by step, so that one forward of a drafter can serve many sequences: while the
/// frontier is not empty, supply a row for each of its nodes. For builders that read expanders; the
/// builder may be freed meanwhile.
TREESPEC_API treespec_status treespec_growth_create(const treespec_builder* builder,
                                                    const treespec_build_options* options,
                                                    treespec_growth** growth);
TREESPEC_API void treespec_growth_free(treespec_growth* growth);
/// `nodes` is valid until the growth is supplied or freed.
TREESPEC_API treespec_status treespec_growth_get_frontier(const treespec_growth* growth,
                                                          const treespec_frontier_node** nodes,
                                                          int64_t* num_nodes);
/// One row per frontier node, in order. After values that are refused (NaN, a positive logprob) the
/// growth can only be freed.
TREESPEC_API treespec_status treespec_growth_supply(treespec_growth* growth,
                                                    const treespec_candidates* rows);
/// The tree, once, when the frontier is empty.
TREESPEC_API treespec_status treespec_growth_finish(treespec_growth* growth, treespec_tree** tree);

/// The arrays of a tree. Node 0 is the root, parents come first.
typedef struct treespec_tree_data {
  size_t struct_size;
  int64_t num_nodes;           ///< N
  const int32_t* token;        ///< [N]
  const int32_t* parent;       ///< [N], -1 for the root
  const int32_t* depth;        ///< [N], 0 for the root
  const float* path_logprob;   ///< [N], sum of draft log-probabilities from the root
  const int32_t* draw_offset;  ///< [N + 1]; draws of node i are draw[draw_offset[i] : [i + 1]]
  const int32_t* draw;         ///< child ids in draw order; what was drawn twice is there twice
  int64_t num_draws;
  /// The law of the first child of each node that drew; row r holds the entries
  /// law_row_offset[r] : [r + 1]. law_vocab_size 0: the tree carries no law.
  int64_t law_vocab_size;
  int64_t num_law_rows;
  const int32_t* law_row_of_node;  ///< [N], -1: the node drew nothing
  const int64_t* law_row_offset;   ///< [num_law_rows + 1]
  const int32_t* law_token;        ///< ascending in a row
  const float* law_prob;           ///< sums to 1 in a row
  treespec_proposal proposal;
  int32_t reserved;
} treespec_tree_data;
/// Borrowed from the tree.
TREESPEC_API treespec_status treespec_tree_get_data(const treespec_tree* tree,
                                                    treespec_tree_data* data);
/// A tree of your own. `depth` is not read; `path_logprob` NULL: 0; `draw_offset` NULL: children by
/// id, in deterministic trees only. Refuses what is not a sound tree.
TREESPEC_API treespec_status treespec_tree_create(const treespec_tree_data* data,
                                                  treespec_tree** tree);
TREESPEC_API void treespec_tree_free(treespec_tree* tree);
/// TREESPEC_OK, or TREESPEC_INVALID_ARGUMENT and all violations in the text: also those of the
/// law's numbers, which else a verifier checks row by row.
TREESPEC_API treespec_status treespec_tree_check(const treespec_tree* tree);

// --- Masks ---------------------------------------------------------------------------------------

/// `[N, W]` with W = ceil(N / 32): bit j % 32 of word j / 32 in row i is set iff j is i or an
/// ancestor of i.
TREESPEC_API treespec_status treespec_mask_bits(const treespec_tree* tree, uint32_t* out,
                                                int64_t capacity);
/// Rows `[N - first, prefix_length + N]`: nodes first ... N - 1 as queries, the prefix and their
/// ancestors as keys; 1 is visible. `window` > 0 hides keys with query position - key position >=
/// window.
TREESPEC_API treespec_status treespec_mask_bool(const treespec_tree* tree, int32_t first,
                                                int32_t prefix_length, int32_t window, uint8_t* out,
                                                int64_t capacity);
/// The same as numbers to add: 0 is visible, the lowest finite value of `dtype` is hidden.
TREESPEC_API treespec_status treespec_mask_additive(const treespec_tree* tree, int32_t first,
                                                    int32_t prefix_length, int32_t window,
                                                    treespec_dtype dtype, void* out,
                                                    int64_t capacity);
/// `rank`, `end` `[N]`: j is i or an ancestor of i iff rank[j] <= rank[i] < end[j].
TREESPEC_API treespec_status treespec_mask_intervals(const treespec_tree* tree, int32_t* rank,
                                                     int32_t* end, int64_t capacity);
/// Every leaf is a sequence, numbered by leaf id order; node i belongs to sequences
/// id[offset[i] : offset[i + 1]]. `offset` `[N + 1]`. With `id` NULL only `offset` is written,
/// whose last entry is the capacity that `id` needs.
TREESPEC_API treespec_status treespec_mask_sequence_ids(const treespec_tree* tree, int32_t* offset,
                                                        int64_t offset_capacity, int32_t* id,
                                                        int64_t id_capacity);
/// `[N]`: prefix_length + depth.
TREESPEC_API treespec_status treespec_positions(const treespec_tree* tree, int32_t prefix_length,
                                                int32_t* out, int64_t capacity);

// --- Verification --------------------------------------------------------------------------------

TREESPEC_API int64_t treespec_num_verifiers(void);
/// Row `i` of the table of verifiers; NULL outside it.
TREESPEC_API const char* treespec_verifier_name(int64_t i);
TREESPEC_API const char* treespec_verifier_summary(int64_t i);
/// What "auto" stands for; NULL for an unknown proposal.
TREESPEC_API const char* treespec_auto_verifier(treespec_proposal proposal, int32_t greedy);
/// Refuses a pair that would be biased, naming the verifiers that fit. `chain`: whether no node has
/// more than one draw.
TREESPEC_API treespec_status treespec_check_verifier(const char* verifier,
                                                     treespec_proposal proposal, int32_t chain,
                                                     int32_t lossy);

typedef struct treespec_logit_bias {
  int32_t token;
  int32_t reserved;  ///< 0
  double bias;
} treespec_logit_bias;

/// How a row of logits becomes a law; order, ties and ranges are in docs/sampling.md.
typedef struct treespec_sampling {
  size_t struct_size;
  double temperature;         ///< 0 is greedy; _init: 1
  double top_p;               ///< _init: 1, off
  double min_p;               ///< 0 is off
  double repetition_penalty;  ///< _init: 1, off
  double presence_penalty;    ///< 0 is off
  double frequency_penalty;   ///< 0 is off
  const treespec_logit_bias* logit_bias;
  int32_t num_logit_bias;
  int32_t top_k;  ///< 0 is off
} treespec_sampling;
TREESPEC_API treespec_status treespec_sampling_init(treespec_sampling* sampling,
                                                    size_t struct_size);

/// What rows of logits depend on, all of it optional.
typedef struct treespec_logit_options {
  size_t struct_size;
  const treespec_sampling* sampling;  ///< NULL: that of _init
  const int32_t* prefix_ids;          ///< committed tokens, the root last; penalties need them
  int64_t num_prefix_ids;
  int64_t prompt_length;      ///< tokens of `prefix_ids` that are prompt
  const uint32_t* allowed;    ///< [rows, ceil(V / 32)]: bit t % 32 of word t / 32 allows token t
  int64_t num_allowed_words;  ///< of all rows
} treespec_logit_options;

typedef struct treespec_verify_options {
  size_t struct_size;
  const char* verifier;  ///< a name; NULL or "auto": treespec_auto_verifier
  treespec_key key;
  int32_t lossy;  ///< 1 admits verifiers that change the distribution of the text
  int32_t reserved;
} treespec_verify_options;

/// What a round decided. The caller sets struct_size, memory and capacity.
typedef struct treespec_verdict {
  size_t struct_size;
  int32_t* accepted_nodes;  ///< room for node ids of the accepted path, root excluded, top down
  int32_t* tokens;          ///< room for the path's tokens and next_token; may be NULL
  int64_t capacity;         ///< elements of each; the tree's nodes are enough, and asked for
  int32_t num_accepted;     ///< out: accepted_nodes has so many, tokens one more
  int32_t next_token;       ///< out: correction or bonus token; the next root
} treespec_verdict;

/// Keeps the longest path that the target itself could have produced, and draws one more token.
/// `target_probs` `[N, V]` float32 or float64: row i is the law of the token after node i.
/// `draft_probs` `[N, V]`: the law the first child of node i was drawn from; NULL: the tree's own.
/// `options` NULL: "auto" and key 0.
TREESPEC_API treespec_status treespec_verify(const treespec_tree* tree,
                                             const treespec_rows* target_probs,
                                             const treespec_rows* draft_probs,
                                             const treespec_verify_options* options,
                                             treespec_verdict* verdict);
/// The same from logits of any dtype; only rows that the walk visits are processed, with the
/// penalties of the node's own path. `processing` NULL: temperature 1.
TREESPEC_API treespec_status treespec_verify_logits(const treespec_tree* tree,
                                                    const treespec_rows* target_logits,
                                                    const treespec_rows* draft_probs,
                                                    const treespec_logit_options* processing,
                                                    const treespec_verify_options* options,
                                                    treespec_verdict* verdict);
/// Plain sampling from one row, e.g. the first token after a prefill: `key.position` is that of the
/// drawn token, e.g. the prompt's length. `allowed` of `processing` is the mask of this row alone.
TREESPEC_API treespec_status treespec_sample(const treespec_rows* logits, int64_t row,
                                             const treespec_logit_options* processing,
                                             const treespec_key* key, int32_t* token);

// --- KV commit -----------------------------------------------------------------------------------

/// One tensor with the rows of a sequence, `[outer, num_rows, row_bytes]` with any strides.
typedef struct treespec_kv_buffer {
  void* data;            ///< first row of the sequence in the first outer slice
  int64_t outer;         ///< heads (times 2 when keys and values share the tensor)
  int64_t outer_stride;  ///< bytes between outer slices
  int64_t row_stride;    ///< bytes between rows
  int64_t row_bytes;     ///< bytes of a row, contiguous
  int64_t num_rows;      ///< rows that it can hold
} treespec_kv_buffer;

/// Moves row `base + nodes[d]` to row `base + d` for every d, in every buffer. `nodes`: root and
/// accepted path, ascending.
TREESPEC_API treespec_status treespec_commit_kv(const treespec_kv_buffer* buffers,
                                                int64_t num_buffers, int64_t base,
                                                const int32_t* nodes, int64_t num_nodes);

// --- Drafters ------------------------------------------------------------------------------------

/// Settings of prompt lookup; see NgramOptions in drafts.h.
typedef struct treespec_ngram_options {
  size_t struct_size;
  double kappa;       ///< weight of "something not seen yet"; _init: 1
  double recency;     ///< weight of a hit = recency^(age / 100 tokens); _init: 1
  int32_t max_ngram;  ///< longest context looked up; _init: 4
  int32_t min_ngram;  ///< shortest; _init: 1
  int32_t max_hits;   ///< latest occurrences read per draft; _init: 64
  int32_t reserved;
} treespec_ngram_options;
TREESPEC_API treespec_status treespec_ngram_options_init(treespec_ngram_options* options,
                                                         size_t struct_size);

/// Settings of the suffix automaton; see SuffixOptions in drafts.h.
typedef struct treespec_suffix_options {
  size_t struct_size;
  double alpha;           ///< a match of length p drafts at most alpha * p + beta nodes; _init: 2
  double beta;            ///< _init: 4
  double min_token_prob;  ///< least path probability of a node; _init: 0.02
  double kappa;           ///< escape mass, divided by the matched length; _init: 2
  int32_t max_match;      ///< longest suffix that is matched; _init: 64
  int32_t max_depth;      ///< deepest node; _init: 64
  int32_t max_children;   ///< children read per node; _init: 128
  int32_t reserved;
} treespec_suffix_options;
TREESPEC_API treespec_status treespec_suffix_options_init(treespec_suffix_options* options,
                                                          size_t struct_size);

/// Drafters without a model. `options` NULL: those of _init.
TREESPEC_API treespec_status treespec_ngram_drafter_create(const treespec_ngram_options* options,
                                                           treespec_drafter** drafter);
TREESPEC_API treespec_status treespec_suffix_drafter_create(const treespec_suffix_options* options,
                                                            treespec_drafter** drafter);

/// What a drafter is asked for in a round.
typedef struct treespec_draft_request {
  size_t struct_size;
  treespec_key key;
  int32_t root_token;                 ///< the last committed token, observed already
  int32_t max_depth;                  ///< >= 1; deeper nodes could not be emitted
  int32_t node_budget;                ///< >= 1; nodes the tree will have at most
  treespec_proposal proposal;         ///< of the builder: it ranks candidates, or draws from them
  const treespec_sampling* sampling;  ///< e.g. for a draft temperature
} treespec_draft_request;

/// A drafter of your own. Its state advances in `begin` and `observe` alone.
typedef struct treespec_draft_model {
  size_t struct_size;
  void* user;           ///< first argument of the callbacks
  int64_t vocab_size;   ///< token ids are below this; 0: no vocabulary of its own
  int64_t max_context;  ///< tokens that prompt and output may have together; 0: no limit
  /// A new sequence. `states`: row i belongs to prompt[i]; data NULL if the target gives none.
  int32_t (*begin)(void* user, const int32_t* prompt, int64_t prompt_length,
                   const treespec_rows* states);
  /// Makes candidates below the root and hands them over: the library frees `*source`. A second
  /// call with the same request must give the same ones.
  int32_t (*draft)(void* user, const treespec_draft_request* request, treespec_source** source);
  /// Newly emitted tokens, in order and exactly once; the last one is the new root. `states`: row i
  /// is the target's at the position before token_ids[i].
  int32_t (*observe)(void* user, const int32_t* token_ids, int64_t num_token_ids,
                     const treespec_rows* states);
} treespec_draft_model;
/// The struct is copied; `user` must live as long as the drafter.
TREESPEC_API treespec_status treespec_drafter_create(const treespec_draft_model* model,
                                                     treespec_drafter** drafter);
TREESPEC_API void treespec_drafter_free(treespec_drafter* drafter);

/// For engines that own their loop: what a decoder does with a drafter. `states` may be NULL.
TREESPEC_API treespec_status treespec_drafter_begin(treespec_drafter* drafter,
                                                    const int32_t* prompt, int64_t prompt_length,
                                                    const treespec_rows* states);
TREESPEC_API treespec_status treespec_drafter_observe(treespec_drafter* drafter,
                                                      const int32_t* token_ids,
                                                      int64_t num_token_ids,
                                                      const treespec_rows* states);
/// Asks the drafter and grows a tree over what it gives: the root alone where budget or depth is 0.
/// `sampling` NULL: that of _init; `options` NULL: those of _init.
TREESPEC_API treespec_status treespec_drafter_build(treespec_drafter* drafter,
                                                    const treespec_builder* builder,
                                                    const treespec_sampling* sampling,
                                                    const treespec_build_options* options,
                                                    treespec_tree** tree);

// --- Decoder -------------------------------------------------------------------------------------

/// One target forward over all nodes of a tree. Node i has token[i] at position[i], sees the prefix
/// and the nodes of its ancestor bits (itself included), and writes KV row prefix_length + i.
typedef struct treespec_tree_step {
  size_t struct_size;
  const treespec_tree* tree;  ///< for treespec_mask_ functions and treespec_tree_get_data
  int64_t num_nodes;
  const int32_t* token;           ///< [N]; token[0] is the last committed token
  const int32_t* parent;          ///< [N], -1 for the root
  const int32_t* position;        ///< [N]
  const uint32_t* ancestor_bits;  ///< [N, ceil(N / 32)], see treespec_mask_bits
  int64_t prefix_length;          ///< committed tokens whose KV the target holds
} treespec_tree_step;

/// The model whose distribution is reproduced: one sequence and its KV cache. Rows that callbacks
/// return stay valid until the next callback of this model. They come with the shape that is asked
/// for, contiguous float32, so that it is enough to set `data`.
typedef struct treespec_target_model {
  size_t struct_size;
  void* user;  ///< first argument of the callbacks
  int64_t vocab_size;
  int64_t max_context;  ///< tokens that prompt and output may have together; 0: no limit
  /// A new sequence: drops what was there (also after a failure), keeps the KV of all tokens, gives
  /// the logits `[1, V]` after the last one.
  int32_t (*prefill)(void* user, const int32_t* token_ids, int64_t num_token_ids,
                     treespec_rows* logits);
  /// Logits `[N, V]`, row i after node i.
  int32_t (*forward)(void* user, const treespec_tree_step* step, treespec_rows* logits);
  /// Keeps the KV rows of these nodes (root first, ascending) behind the prefix, drops the others.
  int32_t (*commit)(void* user, const int32_t* nodes, int64_t num_nodes);
  /// Optional: features of the last prefill `[prompt length, H]` or forward `[N, H]` for drafters;
  /// comes zeroed, `data` NULL if there are none.
  int32_t (*states)(void* user, treespec_rows* states);
} treespec_target_model;

typedef struct treespec_decoder_options {
  size_t struct_size;
  const char* builder;                      ///< NULL: "opt_tree"
  const treespec_options* builder_options;  ///< may be NULL
  const char* verifier;                     ///< NULL: "auto"
  int32_t node_budget;                      ///< drafted nodes; 0 decodes plainly; _init: 32
  int32_t lossy;                            ///< 1 permits a verifier that is lossless on no tree
} treespec_decoder_options;
TREESPEC_API treespec_status treespec_decoder_options_init(treespec_decoder_options* options,
                                                           size_t struct_size);

/// Runs rounds over your model. `target` is copied; its `user` and `drafter` (NULL decodes plainly)
/// are borrowed for the decoder's life. `options` NULL: those of _init.
TREESPEC_API treespec_status treespec_decoder_create(const treespec_target_model* target,
                                                     treespec_drafter* drafter,
                                                     const treespec_decoder_options* options,
                                                     treespec_decoder** decoder);
TREESPEC_API void treespec_decoder_free(treespec_decoder* decoder);

typedef struct treespec_generate_options {
  size_t struct_size;
  int32_t max_new_tokens;  ///< _init: 128
  uint32_t sequence_id;
  uint64_t seed;
  const treespec_sampling* sampling;  ///< NULL: that of _init
  const int32_t* stop_token_ids;      ///< the first of them emitted is the last token
  int64_t num_stop_token_ids;
  void* user;  ///< first argument of the callbacks, each of which may be NULL
  /// Called with the output after each of its tokens; TREESPEC_STOP makes that token the last one.
  int32_t (*stop_when)(void* user, const int32_t* output, int64_t output_length);
  /// Receives every token once, as rounds commit them; TREESPEC_STOP cancels.
  int32_t (*on_tokens)(void* user, const int32_t* token_ids, int64_t num_token_ids);
  /// Grammar: sets the bits of the tokens allowed after each node, `[N, ceil(V / 32)]` words,
  /// zeroed before. `text`: prompt and output, whose last token is the root. The first call, after
  /// the prefill, has a tree of the last prompt token alone.
  int32_t (*allow)(void* user, const treespec_tree* tree, const int32_t* text, int64_t text_length,
                   uint32_t* allowed, int64_t num_words);
} treespec_generate_options;
TREESPEC_API treespec_status treespec_generate_options_init(treespec_generate_options* options,
                                                            size_t struct_size);

/// Continues `prompt`. One generation at a time per target and per drafter; after a failure the
/// next one starts afresh. `options` NULL: those of _init.
TREESPEC_API treespec_status treespec_decoder_generate(const treespec_decoder* decoder,
                                                       const int32_t* prompt, int64_t prompt_length,
                                                       const treespec_generate_options* options,
                                                       treespec_result** result);

typedef struct treespec_result_data {
  size_t struct_size;
  const int32_t* token_ids;  ///< new tokens, a stop token included
  int64_t num_token_ids;
  int64_t rounds;                    ///< target forwards over a tree; the prefill is not one
  int64_t emitted_tokens;            ///< of rounds; the first token, from the prefill, is not one
  int64_t drafted_nodes;             ///< below the root, over all trees
  const int64_t* accepted_by_depth;  ///< [d - 1]: rounds that accepted a node of depth d
  int64_t num_depths;
  const int64_t* accepted_by_rank;  ///< [r]: accepted nodes that are the r-th child drawn
  int64_t num_ranks;
  double prefill_seconds;
  double step_seconds[6];  ///< draft, build, mask, target, verify, commit
  treespec_stop_reason stop_reason;
  int32_t reserved;
} treespec_result_data;
/// Borrowed from the result.
TREESPEC_API treespec_status treespec_result_get_data(const treespec_result* result,
                                                      treespec_result_data* data);
TREESPEC_API void treespec_result_free(treespec_result* result);

#ifdef __cplusplus
}  // extern "C"
#endif
