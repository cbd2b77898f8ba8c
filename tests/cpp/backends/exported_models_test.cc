// SPDX-License-Identifier: Apache-2.0
// Exported models on a graph that checks what every query sees: caches, masks, chunks, growth,
// failures, batches. No runtime needed.
#include <atomic>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "fake_model.h"
#include "toy_models.h"
#include "treespec/batch_decoder.h"
#include "treespec/drafts.h"
#include "treespec/error.h"
#include "treespec/exported_model.h"

namespace {

using namespace treespec;        // NOLINT
using namespace treespec::test;  // NOLINT

constexpr CacheStyle kStyles[] = {CacheStyle::kInPlace, CacheStyle::kNewRows};
const Tokens kPrompt{3, 1, 4, 1, 5, 9, 2, 6};

/// A target and a drafter of each kind.
struct Models {
  explicit Models(CacheStyle style)
      : target(std::make_shared<FakeModel>(fake_manifest(ModelRole::kTarget, style), target_state)),
        causal(std::make_shared<FakeModel>(fake_manifest(ModelRole::kDrafter, style), draft_state)),
        marginals(std::make_shared<FakeModel>(fake_block_manifest(style, 0), draft_state)),
        transitions(std::make_shared<FakeModel>(fake_block_manifest(style, 2), draft_state)) {}

  std::vector<std::shared_ptr<const FakeModel>> drafters() const {
    return {causal, marginals, transitions};
  }

  FakeState target_state, draft_state;
  std::shared_ptr<const FakeModel> target, causal, marginals, transitions;
};

GenerateOptions options(int32_t max_new_tokens, double temperature = 0.0) {
  GenerateOptions one;
  one.max_new_tokens = max_new_tokens;
  one.sampling.temperature = temperature;
  one.seed = 11;
  return one;
}

DecoderOptions recipe(std::string builder = "opt_tree", BuilderOptions builder_options = {}) {
  DecoderOptions one;
  one.builder = std::move(builder);
  one.builder_options = std::move(builder_options);
  one.node_budget = 12;
  return one;
}

/// The likeliest continuation by the table itself.
Tokens greedy_text(const Tokens& prompt, int32_t size) {
  Tokens text = prompt;
  for (int32_t i = 0; i < size; ++i) {
    const int32_t before = text.size() > 1 ? text[text.size() - 2] : 0;
    int32_t best = 0;
    for (int32_t t = 1; t < kFakeVocab; ++t) {
      const auto logit = [&](int32_t token) {
        return static_cast<float>(table_logit(kFakeTable, before, text.back(), token));
      };
      if (logit(t) > logit(best)) best = t;
    }
    text.push_back(best);
  }
  return {text.end() - size, text.end()};
}

Tokens generate(const Models& models, DraftModel* draft, const GenerateOptions& how,
                const DecoderOptions& with = recipe(), const Tokens& prompt = kPrompt) {
  ExportedTarget target(models.target);
  return SpeculativeDecoder(target, draft, with).generate(prompt, how).token_ids;
}

void the_text_is_the_targets_for_every_drafter_style_and_builder() {
  for (const CacheStyle style : kStyles) {
    const Models models(style);
    const Tokens expected = greedy_text(kPrompt, 60);
    CHECK(generate(models, nullptr, options(60)) == expected);
    const Tokens sampled = generate(models, nullptr, options(60, 0.9));
    for (const auto& drafter : models.drafters()) {
      ExportedDraft draft(drafter, models.target->manifest());
      for (const char* builder : {"opt_tree", "chain", "kary"}) {
        CHECK(generate(models, &draft, options(60), recipe(builder)) == expected);
        CHECK(generate(models, &draft, options(60, 0.9), recipe(builder)) == sampled);
      }
    }
  }
}

void a_perfect_drafter_is_accepted_in_full() {
  for (const CacheStyle style : kStyles) {
    const Models models(style);
    ExportedTarget target(models.target);
    ExportedDraft draft(models.causal, models.target->manifest());
    const auto chain = recipe("chain", {{"max_depth", int64_t{4}}});
    const GenerateResult result =
        SpeculativeDecoder(target, &draft, chain).generate(kPrompt, options(51));
    CHECK_EQUAL(result.stats.rounds, 10);  // 1 + 10 * 5 tokens
  }
}

void long_texts_grow_the_caches_and_short_ones_use_them_again() {
  for (const CacheStyle style : kStyles) {
    const Models models(style);
    ExportedTarget target(models.target);
    for (const auto& drafter : models.drafters()) {
      ExportedDraft draft(drafter, models.target->manifest());
      const SpeculativeDecoder decoder(target, &draft, recipe());
      for (const int32_t size : {420, 20, 300}) {
        CHECK(decoder.generate(kPrompt, options(size)).token_ids == greedy_text(kPrompt, size));
      }
    }
  }
}

void prompts_of_any_length_are_read_in_chunks() {
  for (const CacheStyle style : kStyles) {
    Models models(style);
    for (const int32_t chunk : {1, 7, 256}) {
      ExportedTargetOptions settings;
      settings.prefill_rows = chunk;
      ExportedDraftOptions draft_settings;
      draft_settings.prefill_rows = chunk;
      ExportedTarget target(models.target, settings);
      for (const auto& drafter : models.drafters()) {
        ExportedDraft draft(drafter, models.target->manifest(), draft_settings);
        for (const int32_t length : {1, 7, 8, 50}) {
          Tokens prompt;
          for (int32_t i = 0; i < length; ++i) prompt.push_back(i * 5 % kFakeVocab);
          models.target_state.shapes.clear();
          const SpeculativeDecoder decoder(target, &draft, recipe());
          CHECK(decoder.generate(prompt, options(12)).token_ids == greedy_text(prompt, 12));
          CHECK_EQUAL(models.target_state.shapes[0].second, std::min(length, chunk));
        }
      }
    }
  }
}

void states_are_the_features_of_prompt_and_tree() {
  const Models models(CacheStyle::kInPlace);
  ExportedTargetOptions settings;
  settings.prefill_rows = 3;
  ExportedTarget target(models.target, settings);
  target.prefill(kPrompt);
  const RowsView states = target.states();
  CHECK_EQUAL(states.num_rows, static_cast<int64_t>(kPrompt.size()));
  CHECK_EQUAL(states.width, 2);
  for (size_t i = 0; i < kPrompt.size(); ++i) {
    const float* row = static_cast<const float*>(states.data) + i * 2;
    CHECK_EQUAL(static_cast<int32_t>(row[0]), kPrompt[i]);
    CHECK_EQUAL(static_cast<size_t>(row[1]), i);
  }
  settings.features = false;
  ExportedTarget without(models.target, settings);
  without.prefill(kPrompt);
  CHECK(without.states().data == nullptr);
  ExportedDraft draft(models.marginals, models.target->manifest());
  CHECK_THROWS(InvalidArgument, SpeculativeDecoder(without, &draft).generate(kPrompt, options(4)));
}

/// Candidates of a frontier of the root and its likeliest children, as one list of numbers.
std::vector<float> read_all(CandidateSource& source, int32_t root) {
  std::vector<float> all;
  const auto add = [&](ArrayView<const CandidateRow> rows) {
    std::vector<FrontierNode> best;
    for (int64_t i = 0; i < rows.size(); ++i) {
      for (int32_t k = 0; k < rows[i].size; ++k) {
        all.push_back(static_cast<float>(rows[i].token_of(k)));
        all.push_back(rows[i].logprob[k]);
        const int32_t state = rows[i].state != nullptr ? rows[i].state[k] : 0;
        if (k < 2) best.push_back({k + 1, 0, rows[i].token_of(k), 1, state});
      }
    }
    return best;
  };
  const FrontierNode first{0, -1, root, 0, 0};
  const std::vector<FrontierNode> children = add(source.rows({&first, 1}));
  add(source.rows(children));
  return all;
}

void a_draft_changes_nothing_that_can_be_observed() {
  for (const CacheStyle style : kStyles) {
    const Models models(style);
    ExportedTarget target(models.target);
    target.prefill(kPrompt);
    for (const auto& drafter : models.drafters()) {
      ExportedDraft draft(drafter, models.target->manifest());
      draft.begin(kPrompt, target.states());
      const SamplingParams sampling;
      const DraftRequest request{7, {1, 0, 8}, 4, 8, sampling};
      CHECK_THROWS(InvalidArgument, models.causal == drafter
                                        ? throw InvalidArgument("has the prompt's last token")
                                        : draft.draft(request));
      const Tokens root{7};
      draft.observe(root, {});
      const std::vector<float> once = read_all(draft.draft(request), 7);
      CHECK(read_all(draft.draft(request), 7) == once);
      // A generation of another text in between, and the same again.
      SpeculativeDecoder(target, &draft).generate(Tokens{5, 5, 5}, options(30));
      target.prefill(kPrompt);
      draft.begin(kPrompt, target.states());
      draft.observe(root, {});
      CHECK(read_all(draft.draft(request), 7) == once);
    }
  }
}

void the_draft_law_follows_the_proposal() {
  const Models models(CacheStyle::kInPlace);
  ExportedTarget target(models.target);
  target.prefill(kPrompt);
  SamplingParams sampling;
  sampling.temperature = 0.5;
  sampling.top_k = 2;
  const Tokens root{7};
  const auto lists = [&](const std::shared_ptr<const FakeModel>& drafter, Proposal proposal,
                         std::optional<double> temperature = {}) {
    ExportedDraftOptions settings;
    settings.temperature = temperature;
    ExportedDraft draft(drafter, models.target->manifest(), settings);
    draft.begin(kPrompt, target.states());
    draft.observe(root, {});
    const DraftRequest request{7, {1, 0, 8}, 4, 8, sampling, proposal};
    const FrontierNode first{0, -1, 7, 0, 0};
    const CandidateRow row = draft.draft(request).rows({&first, 1})[0];
    std::vector<float> possible;
    for (int32_t k = 0; k < row.size; ++k) {
      if (!std::isinf(row.logprob[k])) possible.push_back(row.logprob[k]);
    }
    return possible;
  };
  for (const auto& drafter : models.drafters()) {
    const std::vector<float> ranked = lists(drafter, Proposal::kDeterministic);
    const std::vector<float> drawn = lists(drafter, Proposal::kIid);
    CHECK(ranked.size() > 2);
    CHECK_EQUAL(drawn.size(), size_t{2});
    CHECK(std::abs(std::exp(drawn[0]) + std::exp(drawn[1]) - 1.0f) < 1e-5f);
    CHECK(lists(drafter, Proposal::kDeterministic, 0.5) != ranked);
    sampling.top_k = 0;
    sampling.top_p = 0.4;
    CHECK(lists(drafter, Proposal::kIid).size() < ranked.size());
    sampling.top_p = 1.0;
    sampling.temperature = 0.0;  // a greedy text does not draw like its target
    CHECK(lists(drafter, Proposal::kIid) == ranked);
    sampling.temperature = 0.5;
    sampling.top_k = 2;
  }
}

void a_failed_run_leaves_everything_usable() {
  for (const CacheStyle style : kStyles) {
    Models models(style);
    ExportedTarget target(models.target);
    for (const auto& drafter : models.drafters()) {
      ExportedDraft draft(drafter, models.target->manifest());
      const SpeculativeDecoder decoder(target, &draft, recipe());
      for (FakeState* state : {&models.target_state, &models.draft_state}) {
        for (const int run : {1, 2, 5}) {
          state->fail_at_run = state->num_runs + run;
          CHECK_THROWS(std::runtime_error, decoder.generate(kPrompt, options(200)));
          state->fail_at_run = -1;
          CHECK(decoder.generate(kPrompt, options(30)).token_ids == greedy_text(kPrompt, 30));
        }
      }
    }
  }
}

void memory_that_runs_out_loses_the_text_and_nothing_else() {
  for (const CacheStyle style : kStyles) {
    Models models(style);
    ExportedTarget target(models.target);
    const SpeculativeDecoder decoder(target, nullptr, recipe());
    for (const int allocation : {0, 1, 2, 3, 4, 5}) {
      models.target_state.fail_at_allocation = allocation;
      try {
        decoder.generate(kPrompt, options(400));
        CHECK(models.target_state.fail_at_allocation >= 0);  // there were fewer
      } catch (const std::bad_alloc&) {
        const TokenTree root = root_tree(1);
        const Tokens positions{static_cast<int32_t>(kPrompt.size())};
        CHECK_THROWS(std::exception, target.forward({root, positions, {}, positions[0]}));
      }
      models.target_state.fail_at_allocation = -1;
      CHECK(decoder.generate(kPrompt, options(200)).token_ids == greedy_text(kPrompt, 200));
    }
  }
}

void engines_of_fixed_size_are_filled_and_not_exceeded() {
  for (const CacheStyle style : kStyles) {
    Models models(style);
    models.target_state.limits = {64, 16};
    ExportedTarget target(models.target);
    const SpeculativeDecoder decoder(target, nullptr, recipe());
    CHECK(decoder.generate(kPrompt, options(57)).token_ids == greedy_text(kPrompt, 57));
    CHECK_THROWS(InvalidArgument, decoder.generate(kPrompt, options(58)));
    Tokens prompt(40, 3);  // 16 + 16 + 8 rows
    CHECK(decoder.generate(prompt, options(9)).token_ids == greedy_text(prompt, 9));
    ExportedDraft draft(models.causal, models.target->manifest());
    auto wide = recipe("opt_tree");
    wide.node_budget = 40;
    CHECK_THROWS(InvalidArgument,
                 SpeculativeDecoder(target, &draft, wide).generate(prompt, options(20)));
  }
}

void trees_are_as_large_as_the_target_was_exported_for_and_not_larger() {
  const Models models(CacheStyle::kInPlace);
  const int32_t max_nodes = models.target->manifest().max_nodes;
  auto chain = recipe("chain");
  chain.node_budget = max_nodes - 1;  // and the root
  ExportedDraft draft(models.causal, models.target->manifest());
  CHECK(generate(models, &draft, options(90), chain) == greedy_text(kPrompt, 90));
  ++chain.node_budget;
  CHECK_THROWS(InvalidArgument, generate(models, &draft, options(90), chain));
  const Tokens prompt(static_cast<size_t>(max_nodes) + 1, 3);  // has no such limit
  CHECK(generate(models, nullptr, options(9), chain, prompt) == greedy_text(prompt, 9));
}

void wrong_pairs_steps_and_options_are_refused() {
  const Models models(CacheStyle::kInPlace);
  const ExportManifest& manifest = models.target->manifest();
  CHECK_THROWS(InvalidArgument, ExportedTarget(models.causal));
  CHECK_THROWS(InvalidArgument, ExportedTarget(models.marginals));
  CHECK_THROWS(InvalidArgument, ExportedTarget(nullptr));
  CHECK_THROWS(InvalidArgument, ExportedTarget(models.target, {true, 0}));
  CHECK_THROWS(InvalidArgument, ExportedDraft(models.target, manifest));
  CHECK_THROWS(InvalidArgument, ExportedDraft(nullptr, manifest));
  CHECK_THROWS(InvalidArgument, ExportedDraft(models.causal, manifest, {0.0, 1}));
  CHECK_THROWS(InvalidArgument, ExportedDraft(models.causal, manifest, {{}, 0}));
  ExportManifest other = manifest;
  other.layers = {1, 3};
  CHECK_THROWS(InvalidArgument, ExportedDraft(models.marginals, other));
  other = manifest;
  other.dtype = DType::kFloat16;
  CHECK_THROWS(InvalidArgument, ExportedDraft(models.marginals, other));

  ExportedTarget target(models.target);
  CHECK_THROWS(InvalidArgument, target.prefill(Tokens{}));
  CHECK_THROWS(InvalidArgument, target.prefill(Tokens{kFakeVocab}));
  target.prefill(kPrompt);
  const TokenTree root = root_tree(1);
  const Tokens positions{4};
  CHECK_THROWS(InvalidArgument, target.forward({root, positions, {}, 4}));
  CHECK_THROWS(InvalidArgument, target.commit(Tokens{0}));
  const SpeculativeDecoder decoder(target, nullptr);
  CHECK_THROWS(InvalidArgument, decoder.generate(kPrompt, options(993)));
}

void a_drafter_of_another_vocabulary_is_cut_or_read_as_far_as_it_goes() {
  Models models(CacheStyle::kInPlace);
  ExportManifest smaller = models.target->manifest();
  smaller.vocab_size = 9;
  ExportedDraft cut(models.causal, smaller);
  CHECK_EQUAL(cut.vocab_size(), 9);
  cut.begin(Tokens{1, 2}, {});
  cut.observe(Tokens{3}, {});
  const SamplingParams sampling;
  const FrontierNode first{0, -1, 3, 0, 0};
  const CandidateRow row = cut.draft({3, {1, 0, 2}, 4, 8, sampling}).rows({&first, 1})[0];
  CHECK_EQUAL(row.size, 9);
  double mass = 0.0;
  for (int32_t k = 0; k < row.size; ++k) mass += std::exp(static_cast<double>(row.logprob[k]));
  CHECK(std::abs(mass - 1.0) < 1e-5);

  ExportManifest larger = models.target->manifest();
  larger.vocab_size = 2 * kFakeVocab;
  ExportedDraft small(models.causal, larger);
  CHECK_EQUAL(small.vocab_size(), kFakeVocab);
  small.begin(Tokens{1, 2 * kFakeVocab - 1}, {});
  small.observe(Tokens{kFakeVocab}, {});
  CHECK_EQUAL(small.draft({kFakeVocab, {1, 0, 2}, 4, 8, sampling}).rows({&first, 1})[0].size,
              kFakeVocab);
}

std::vector<Tokens> ragged_prompts() {
  std::vector<Tokens> prompts;
  for (const int32_t length : {8, 1, 90, 30, 5, 130, 8}) {
    Tokens prompt;
    for (int32_t i = 0; i < length; ++i) prompt.push_back((i * 7 + length) % kFakeVocab);
    prompts.push_back(prompt);
  }
  return prompts;
}

/// A text for each prompt, some of which end early.
std::vector<GenerateOptions> ragged_options(double temperature) {
  std::vector<GenerateOptions> all;
  for (const int32_t size : {60, 150, 3, 200, 1, 40, 90}) all.push_back(options(size, temperature));
  return all;
}

void batches_give_each_text_of_its_own_run_in_merged_forwards() {
  const std::vector<Tokens> prompts = ragged_prompts();
  for (const CacheStyle style : kStyles) {
    Models models(style);
    for (const double temperature : {0.0, 0.9}) {
      const std::vector<GenerateOptions> how = ragged_options(temperature);
      std::vector<std::shared_ptr<const FakeModel>> drafters = models.drafters();
      drafters.push_back(nullptr);
      for (const auto& drafter : drafters) {
        BatchOptions settings;
        settings.size = 3;
        BatchDecoder batch(models.target, drafter, recipe(), settings);
        models.target_state.shapes.clear();
        const std::vector<GenerateResult> results = batch.generate_all(prompts, how);
        int64_t merged = 0;
        for (const auto& [sequences, rows] : models.target_state.shapes) merged += sequences > 1;
        CHECK(2 * merged > static_cast<int64_t>(models.target_state.shapes.size()));
        CHECK(models.target_state.shapes[0].first == 2);  // 8 and 1 rows; the third has 90
        for (size_t i = 0; i < prompts.size(); ++i) {
          CHECK(results[i].token_ids == generate(models, nullptr, how[i], recipe(), prompts[i]));
        }
      }
    }
  }
}

void lock_step_repeats_itself() {
  Models models(CacheStyle::kInPlace);
  std::vector<std::pair<int64_t, int64_t>> shapes;
  for (int repeat = 0; repeat < 3; ++repeat) {
    BatchOptions settings;
    settings.size = 8;
    BatchDecoder batch(models.target, models.causal, recipe(), settings);
    models.target_state.shapes.clear();
    batch.generate_all(ragged_prompts(), ragged_options(0.9));
    auto found = models.target_state.shapes;
    for (auto& shape : found) shape.first = 0;  // which place a prompt has is up to its thread
    if (repeat > 0) CHECK(found == shapes);
    shapes = found;
  }
}

void a_batch_survives_callbacks_that_throw_and_runs_that_fail() {
  for (const CacheStyle style : kStyles) {
    Models models(style);
    const std::vector<Tokens> prompts = ragged_prompts();
    std::vector<GenerateOptions> how(prompts.size(), options(60));
    how[1].on_tokens = [](ArrayView<const int32_t>) -> bool { throw std::logic_error("callback"); };
    how[3].on_tokens = [](ArrayView<const int32_t>) { return false; };
    how[4].sampling.temperature = -1.0;
    for (const auto& drafter : models.drafters()) {
      BatchOptions settings;
      settings.size = 4;
      BatchDecoder batch(models.target, drafter, recipe(), settings);
      CHECK_THROWS(std::logic_error, batch.generate_all(prompts, how));
      models.target_state.fail_at_run = models.target_state.num_runs + 6;
      CHECK_THROWS(std::runtime_error, batch.generate_all(prompts, {options(60)}));
      models.target_state.fail_at_run = -1;
      models.target_state.fail_at_allocation = 5;
      try {
        batch.generate_all(prompts, {options(150)});
      } catch (const std::exception&) {
      }
      models.target_state.fail_at_allocation = -1;
      const std::vector<GenerateResult> results = batch.generate_all(prompts, {options(60)});
      for (size_t i = 0; i < prompts.size(); ++i) {
        CHECK(results[i].token_ids == greedy_text(prompts[i], 60));
      }
    }
  }
}

void threads_share_a_batch_and_its_places() {
  Models models(CacheStyle::kInPlace);
  const std::vector<Tokens> prompts = ragged_prompts();
  BatchOptions settings;
  settings.size = 2;  // fewer than threads
  settings.make_draft = [] { return std::make_unique<NgramDraft>(); };
  BatchDecoder batch(models.target, nullptr, recipe(), settings);
  std::atomic<int> mismatches{0};
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 5; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < t + 3; ++i) {
        const Tokens& prompt = prompts[i % prompts.size()];
        const auto text = batch.generate(prompt, options(40)).token_ids;
        if (text != greedy_text(prompt, 40)) ++mismatches;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQUAL(mismatches.load(), 0);
}

void wrong_batches_are_refused() {
  const Models models(CacheStyle::kInPlace);
  BatchOptions settings;
  settings.size = 0;
  CHECK_THROWS(InvalidArgument, BatchDecoder(models.target, nullptr, {}, settings));
  settings.size = 2;
  CHECK_THROWS(InvalidArgument, BatchDecoder(models.causal, nullptr, {}, settings));
  CHECK_THROWS(InvalidArgument, BatchDecoder(models.target, models.target, {}, settings));
  CHECK_THROWS(InvalidArgument,
               BatchDecoder(models.target, models.causal, recipe("no_such"), settings));
  settings.make_draft = [] { return std::make_unique<NgramDraft>(); };
  CHECK_THROWS(InvalidArgument, BatchDecoder(models.target, models.causal, {}, settings));
  BatchDecoder batch(models.target, nullptr, {}, settings);
  CHECK_THROWS(InvalidArgument, batch.generate_all({kPrompt}, {options(1), options(2)}));
  CHECK(batch.generate_all({}, {options(1)}).empty());
  CHECK_THROWS(InvalidArgument, batch.generate(Tokens{}, options(1)));
}

}  // namespace

int main() {
  the_text_is_the_targets_for_every_drafter_style_and_builder();
  a_perfect_drafter_is_accepted_in_full();
  long_texts_grow_the_caches_and_short_ones_use_them_again();
  prompts_of_any_length_are_read_in_chunks();
  states_are_the_features_of_prompt_and_tree();
  a_draft_changes_nothing_that_can_be_observed();
  the_draft_law_follows_the_proposal();
  a_failed_run_leaves_everything_usable();
  memory_that_runs_out_loses_the_text_and_nothing_else();
  engines_of_fixed_size_are_filled_and_not_exceeded();
  trees_are_as_large_as_the_target_was_exported_for_and_not_larger();
  wrong_pairs_steps_and_options_are_refused();
  a_drafter_of_another_vocabulary_is_cut_or_read_as_far_as_it_goes();
  batches_give_each_text_of_its_own_run_in_merged_forwards();
  lock_step_repeats_itself();
  a_batch_survives_callbacks_that_throw_and_runs_that_fail();
  threads_share_a_batch_and_its_places();
  wrong_batches_are_refused();
  return 0;
}
