// SPDX-License-Identifier: Apache-2.0
// A service in C99 alone: its model behind callbacks, drafters of the library and of its own; every
// text is that of plain decoding.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "treespec/treespec_c.h"

#define VOCAB 13
#define MAX_ROWS 512
#define MAX_NODES 32
#define MAX_NEW 60

static void check(int sound, const char* what, int line) {
  if (sound) return;
  fprintf(stderr, "%s:%d: %s failed: %s\n", __FILE__, line, what, treespec_last_error());
  exit(1);
}
#define CHECK(condition) check((condition) != 0, #condition, __LINE__)
#define CHECK_OK(call) check((call) == TREESPEC_OK, #call, __LINE__)

// --- The model -----------------------------------------------------------------------------------

/// A "KV cache" whose rows are tokens: those of the prefix, and behind it the nodes of a tree.
typedef struct model {
  int32_t cache[MAX_ROWS];
  int64_t prefix;
  float logits[MAX_NODES * VOCAB];
  int64_t num_forwards;
} model;

/// A fixed table, peaked enough to be guessed: the logits after two tokens.
static void append_logits(int32_t before, int32_t last, float* row) {
  int32_t t;
  for (t = 0; t < VOCAB; ++t) {
    const uint32_t mixed = (uint32_t)(before * 31 + last * 7 + t * 3 + 11) * 2654435761u;
    row[t] = 5.0f * (float)(mixed >> 8) / 16777216.0f;
  }
}

static int32_t prefill(void* user, const int32_t* token_ids, int64_t size, treespec_rows* logits) {
  model* self = (model*)user;
  memcpy(self->cache, token_ids, (size_t)size * sizeof(int32_t));
  self->prefix = size;
  append_logits(size > 1 ? token_ids[size - 2] : 0, token_ids[size - 1], self->logits);
  logits->data = self->logits;
  return TREESPEC_OK;
}

static int32_t forward(void* user, const treespec_tree_step* step, treespec_rows* logits) {
  model* self = (model*)user;
  const int64_t num_words = (step->num_nodes + 31) / 32;
  int64_t i, j;
  if (step->prefix_length != self->prefix) {
    treespec_set_error("the cache and the decoder disagree");
    return TREESPEC_INTERNAL_ERROR;
  }
  ++self->num_forwards;
  for (i = 0; i < step->num_nodes; ++i) {
    // What node i sees last before itself: its nearest ancestor by the mask, else the prefix.
    int32_t before = self->cache[self->prefix - 1];
    self->cache[self->prefix + i] = step->token[i];
    for (j = 0; j < i; ++j) {
      if (step->ancestor_bits[i * num_words + j / 32] >> (j % 32) & 1u) before = step->token[j];
    }
    append_logits(before, step->token[i], self->logits + i * VOCAB);
  }
  logits->data = self->logits;
  return TREESPEC_OK;
}

static int32_t commit(void* user, const int32_t* nodes, int64_t num_nodes) {
  model* self = (model*)user;
  treespec_kv_buffer rows;
  rows.data = self->cache;
  rows.outer = 1;
  rows.outer_stride = 0;
  rows.row_stride = rows.row_bytes = (int64_t)sizeof(int32_t);
  rows.num_rows = MAX_ROWS;
  if (treespec_commit_kv(&rows, 1, self->prefix, nodes, num_nodes) != TREESPEC_OK)
    return TREESPEC_INTERNAL_ERROR;
  self->prefix += num_nodes;
  return TREESPEC_OK;
}

static treespec_target_model target_of(model* self) {
  treespec_target_model target = {.struct_size = sizeof(target)};
  target.user = self;
  target.vocab_size = VOCAB;
  target.prefill = prefill;
  target.forward = forward;
  target.commit = commit;
  return target;
}

// --- A drafter of its own ------------------------------------------------------------------------

/// Guesses by the same table, blurred; knows the last two tokens.
typedef struct guesser {
  int32_t before, last;
  float logprob[MAX_NODES * VOCAB];
  int32_t tokens[MAX_NODES * MAX_NODES][2];  // of each node by hand-over: the last two tokens
} guesser;

static int32_t expand(void* user, const treespec_frontier_node* nodes, int64_t num_nodes,
                      treespec_candidates* rows) {
  guesser* self = (guesser*)user;
  int64_t i;
  int32_t t;
  if (num_nodes > MAX_NODES) return TREESPEC_OUT_OF_MEMORY;
  for (i = 0; i < num_nodes; ++i) {
    int32_t* seen = self->tokens[nodes[i].index];
    float* row = self->logprob + i * VOCAB;
    double mass = 0.0;
    seen[0] = nodes[i].parent < 0 ? self->before : self->tokens[nodes[i].parent][1];
    seen[1] = nodes[i].token;
    append_logits(seen[0], seen[1], row);
    for (t = 0; t < VOCAB; ++t) mass += exp(row[t] *= 0.7f);
    for (t = 0; t < VOCAB; ++t) row[t] -= (float)log(mass);
  }
  rows->logprob = self->logprob;
  rows->width = rows->row_stride = VOCAB;
  return TREESPEC_OK;
}

static int32_t begin(void* user, const int32_t* prompt, int64_t size, const treespec_rows* states) {
  guesser* self = (guesser*)user;
  (void)states;
  self->last = prompt[size - 1];
  return TREESPEC_OK;
}

static int32_t draft(void* user, const treespec_draft_request* request, treespec_source** source) {
  guesser* self = (guesser*)user;
  if (request->root_token != self->last) return TREESPEC_INTERNAL_ERROR;
  return treespec_expander_create(expand, self, source);
}

static int32_t observe(void* user, const int32_t* token_ids, int64_t size,
                       const treespec_rows* states) {
  guesser* self = (guesser*)user;
  (void)states;
  self->before = size > 1 ? token_ids[size - 2] : self->last;
  self->last = token_ids[size - 1];
  return TREESPEC_OK;
}

// --- Decoding ------------------------------------------------------------------------------------

typedef struct text {
  int32_t tokens[MAX_NEW];
  int64_t size;
} text;

static int32_t append(void* user, const int32_t* token_ids, int64_t size) {
  text* self = (text*)user;
  CHECK(self->size + size <= MAX_NEW);
  memcpy(self->tokens + self->size, token_ids, (size_t)size * sizeof(int32_t));
  self->size += size;
  return TREESPEC_OK;
}

/// Decodes; returns the text, and in `num_forwards` what it took.
static text decode(treespec_drafter* drafter, const char* builder, double temperature,
                   uint64_t seed, int64_t* num_forwards) {
  static const int32_t prompt[4] = {1, 2, 3, 4};
  model* self = (model*)calloc(1, sizeof(model));
  const treespec_target_model target = target_of(self);
  text streamed = {{0}, 0};
  treespec_decoder_options recipe;
  treespec_generate_options options;
  treespec_sampling sampling;
  treespec_decoder* decoder = NULL;
  treespec_result* result = NULL;
  treespec_result_data data = {.struct_size = sizeof(data)};

  CHECK(self != NULL);
  CHECK_OK(treespec_decoder_options_init(&recipe, sizeof(recipe)));
  recipe.builder = builder;
  recipe.node_budget = 12;
  recipe.verifier = temperature == 0.0 ? "greedy" : "target_only";
  CHECK_OK(treespec_decoder_create(&target, drafter, &recipe, &decoder));

  CHECK_OK(treespec_sampling_init(&sampling, sizeof(sampling)));
  sampling.temperature = temperature;
  sampling.top_p = 0.95;
  CHECK_OK(treespec_generate_options_init(&options, sizeof(options)));
  options.max_new_tokens = MAX_NEW;
  options.sampling = &sampling;
  options.seed = seed;
  options.user = &streamed;
  options.on_tokens = append;
  CHECK_OK(treespec_decoder_generate(decoder, prompt, 4, &options, &result));
  CHECK_OK(treespec_result_get_data(result, &data));
  CHECK(data.stop_reason == TREESPEC_REASON_MAX_TOKENS);
  CHECK(data.num_token_ids == MAX_NEW && streamed.size == MAX_NEW);
  CHECK(memcmp(data.token_ids, streamed.tokens, sizeof(streamed.tokens)) == 0);
  CHECK(data.rounds == self->num_forwards);
  CHECK(self->prefix == 4 + MAX_NEW - 1);
  CHECK(memcmp(self->cache + 4, streamed.tokens, (MAX_NEW - 1) * sizeof(int32_t)) == 0);
  *num_forwards = data.rounds;
  treespec_result_free(result);
  treespec_decoder_free(decoder);
  free(self);
  return streamed;
}

int main(void) {
  static guesser own;
  treespec_draft_model table = {.struct_size = sizeof(table)};
  treespec_drafter* drafters[3] = {NULL, NULL, NULL};
  const char* builders[3] = {"trie", "opt_tree", "opt_tree"};
  int64_t fewest = MAX_NEW, forwards = 0;
  uint64_t seed;
  int i;

  CHECK(treespec_abi_version() == TREESPEC_C_ABI_VERSION);
  table.user = &own;
  table.begin = begin;
  table.draft = draft;
  table.observe = observe;
  CHECK_OK(treespec_ngram_drafter_create(NULL, &drafters[0]));
  CHECK_OK(treespec_suffix_drafter_create(NULL, &drafters[1]));
  CHECK_OK(treespec_drafter_create(&table, &drafters[2]));
  for (seed = 0; seed < 12; ++seed) {
    const double temperature = seed % 3 == 0 ? 0.0 : 0.4 * (double)(seed % 3);
    const text plain = decode(NULL, "opt_tree", temperature, seed, &forwards);
    CHECK(forwards == MAX_NEW - 1);
    for (i = 0; i < 3; ++i) {
      const text guessed = decode(drafters[i], builders[i], temperature, seed, &forwards);
      CHECK(memcmp(plain.tokens, guessed.tokens, sizeof(plain.tokens)) == 0);
      if (forwards < fewest) fewest = forwards;
    }
  }
  CHECK(fewest < MAX_NEW / 2);
  for (i = 0; i < 3; ++i) treespec_drafter_free(drafters[i]);
  return 0;
}
