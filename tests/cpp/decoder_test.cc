// SPDX-License-Identifier: Apache-2.0
// SpeculativeDecoder with toy models: the text is the target's, whatever drafts it.
#include "treespec/decoder.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "check.h"
#include "toy_models.h"
#include "treespec/drafts.h"
#include "treespec/error.h"

namespace {

using namespace treespec;        // NOLINT
using namespace treespec::test;  // NOLINT

constexpr int32_t kVocab = 11;
constexpr uint64_t kTable = 77;
constexpr double kNoise = 0.4;
const Tokens kPrompt{3, 1, 4, 1, 5};

DecoderOptions recipe(std::string builder, BuilderOptions builder_options = {},
                      std::string verifier = "auto", int32_t node_budget = 12) {
  DecoderOptions options;
  options.builder = std::move(builder);
  options.builder_options = std::move(builder_options);
  options.verifier = std::move(verifier);
  options.node_budget = node_budget;
  return options;
}

GenerateResult plain(const Tokens& prompt, const GenerateOptions& options) {
  TableTarget target(kVocab, kTable);
  const GenerateResult result = SpeculativeDecoder(target, nullptr).generate(prompt, options);
  CHECK(target.kv == expected_kv(prompt, result.token_ids));
  CHECK_EQUAL(result.stats.drafted_nodes, 0);
  return result;
}

void check_stats(const GenerateResult& result) {
  const Stats& stats = result.stats;
  CHECK_EQUAL(stats.emitted_tokens, static_cast<int64_t>(result.token_ids.size()) - 1);
  const auto sum = [](const std::vector<int64_t>& counts) {
    return std::accumulate(counts.begin(), counts.end(), int64_t{0});
  };
  CHECK_EQUAL(sum(stats.accepted_by_depth), sum(stats.accepted_by_rank));
  CHECK_EQUAL(stats.accepted_nodes(), sum(stats.accepted_by_depth));
  CHECK_EQUAL(stats.wasted_nodes(), stats.drafted_nodes - stats.accepted_nodes());
  CHECK(stats.wasted_nodes() >= 0);
  CHECK(stats.predicted_accepted >= 0.0);
  CHECK(stats.predicted_accepted <= static_cast<double>(stats.drafted_nodes));
  CHECK(sum(stats.accepted_by_depth) <= stats.emitted_tokens);
  CHECK(stats.emitted_tokens <= stats.rounds + sum(stats.accepted_by_depth));
  CHECK(std::is_sorted(stats.accepted_by_depth.rbegin(), stats.accepted_by_depth.rend()));
  for (const double seconds : stats.seconds) CHECK(seconds >= 0.0);
}

/// Every drafter and builder that reads it, on the recipes below.
void for_every_drafter(
    const std::function<void(TableTarget&, DraftModel&, const DecoderOptions&)>& visit) {
  const BuilderOptions wide{{"expansion", std::vector<int64_t>{3, 2, 2}}};
  for (const auto& options :
       {recipe("opt_tree"), recipe("chain", {{"max_depth", int64_t{4}}}),
        recipe("kary", wide, "auto", 21), recipe("opt_tree", {}, "auto", 50)}) {
    TableTarget target(kVocab, kTable);
    target.with_states = true;
    NoisyDraft draft(target, kNoise);
    visit(target, draft, options);
    CHECK(draft.num_state_rounds > 0);
  }
  for (const char* builder : {"opt_tree", "trie"}) {
    TableTarget target(kVocab, kTable);
    NgramDraft ngram;
    SuffixDraft suffix;
    visit(target, ngram, recipe(builder));
    visit(target, suffix, recipe(builder));
  }
}

void greedy_speculative_text_equals_plain_greedy() {
  GenerateOptions options;
  options.sampling.temperature = 0.0;
  options.max_new_tokens = 60;
  const Tokens expected = plain(kPrompt, options).token_ids;
  for_every_drafter([&](TableTarget& target, DraftModel& draft, const DecoderOptions& how) {
    const GenerateResult result =
        SpeculativeDecoder(target, &draft, how).generate(kPrompt, options);
    CHECK(result.token_ids == expected);
    CHECK(result.stop_reason == StopReason::kMaxTokens);
    CHECK(target.kv == expected_kv(kPrompt, expected));
    CHECK(result.stats.block_efficiency() > 1.2);
    check_stats(result);
  });
}

void an_exact_drafter_keeps_its_promises() {
  Stats stats;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    TableTarget target(kVocab, kTable);
    NoisyDraft draft(target, 0.0);
    GenerateOptions options;
    options.seed = seed;
    options.max_new_tokens = 60;
    const SpeculativeDecoder decoder(target, &draft, recipe("opt_tree"));
    stats += decoder.generate(kPrompt, options).stats;
  }
  CHECK(stats.accepted_nodes() > 2000);  // enough for a bound of three standard errors
  const double kept = static_cast<double>(stats.accepted_nodes()) / stats.predicted_accepted;
  CHECK(kept > 0.95 && kept < 1.05);
}

void sampled_target_only_text_equals_plain_sampling() {
  for (uint64_t seed = 0; seed < 24; ++seed) {
    GenerateOptions options;
    options.seed = seed;
    options.sequence_id = static_cast<uint32_t>(seed % 3);
    options.max_new_tokens = static_cast<int32_t>(1 + seed);
    options.sampling.temperature = 0.3 + 0.4 * static_cast<double>(seed % 4);
    if (seed % 2 == 1) options.sampling.top_p = 0.8;
    if (seed % 5 == 1) options.sampling.top_k = 4;
    if (seed % 3 == 1) options.sampling.repetition_penalty = 1.3;
    if (seed % 3 == 2) {
      options.sampling.presence_penalty = 0.5;
      options.sampling.frequency_penalty = 0.25;
    }
    const Tokens expected = plain(kPrompt, options).token_ids;
    for_every_drafter([&](TableTarget& target, DraftModel& draft, const DecoderOptions& how) {
      GenerateOptions seeded = options;
      const SpeculativeDecoder decoder(target, &draft, how);
      if (seeded.max_new_tokens < 5) {  // one call to have drafted at all
        GenerateOptions longer = options;
        longer.max_new_tokens = 6;
        decoder.generate(kPrompt, longer);
      }
      const GenerateResult result = decoder.generate(kPrompt, seeded);
      CHECK(result.token_ids == expected);
      CHECK(target.kv == expected_kv(kPrompt, expected));
      check_stats(result);
    });
  }
}

/// Pearson's statistic of the first three tokens against the target's exact law.
double first_tokens_chi_square(const DecoderOptions& how, double temperature, int num_runs) {
  constexpr int32_t kSmall = 4;
  const Tokens prompt{1, 2};
  TableTarget target(kSmall, kTable);
  NoisyDraft draft(target, 1.5);
  const SpeculativeDecoder decoder(target, &draft, how);
  GenerateOptions options;
  options.max_new_tokens = 5;
  options.sampling.temperature = temperature;
  std::vector<double> count(kSmall * kSmall * kSmall, 0.0);
  for (int run = 0; run < num_runs; ++run) {
    options.seed = static_cast<uint64_t>(run);
    const Tokens text = decoder.generate(prompt, options).token_ids;
    CHECK_EQUAL(text.size(), size_t{5});
    count[(text[1] * kSmall + text[2]) * kSmall + text[3]] += 1.0;
  }
  const auto prob = [&](const Tokens& seen, int32_t token) {
    double mass = 0.0;
    for (int32_t t = 0; t < kSmall; ++t) mass += std::exp(target.logit(seen, t) / temperature);
    return std::exp(target.logit(seen, token) / temperature) / mass;
  };
  double statistic = 0.0;
  for (size_t cell = 0; cell < count.size(); ++cell) {
    double expected = 0.0;  // tokens 1 to 3, drafted by rounds, summed over token 0
    for (int32_t first = 0; first < kSmall; ++first) {
      Tokens seen = prompt;
      double path = prob(seen, first);
      seen.push_back(first);
      for (const int32_t token :
           {static_cast<int32_t>(cell / 16), static_cast<int32_t>(cell / 4 % 4),
            static_cast<int32_t>(cell % 4)}) {
        path *= prob(seen, token);
        seen.push_back(token);
      }
      expected += path * num_runs;
    }
    statistic += (count[cell] - expected) * (count[cell] - expected) / expected;
  }
  return statistic;
}

void recursive_rejection_has_the_target_law() {
  // 63 degrees of freedom: mean 63, deviation 11.2; the seeds are fixed, so this cannot flicker.
  constexpr double kBound = 63.0 + 5.0 * 11.3;
  const std::vector<int64_t> expansion{2, 2};
  for (const char* proposal : {"iid", "without_replacement"}) {
    const BuilderOptions options{{"expansion", expansion}, {"proposal", std::string(proposal)}};
    const DecoderOptions how = recipe("kary", options, "recursive_rejection", 6);
    CHECK(first_tokens_chi_square(how, 1.0, 12000) < kBound);
    CHECK(first_tokens_chi_square(how, 0.7, 12000) < kBound);
  }
  CHECK(first_tokens_chi_square(recipe("opt_tree", {}, "target_only", 6), 1.0, 12000) < kBound);
}

void stop_tokens_cut_where_plain_decoding_stops() {
  bool inside_a_path = false;
  for (int32_t stop = 0; stop < kVocab; ++stop) {
    for (uint64_t seed = 0; seed < 6; ++seed) {
      GenerateOptions options;
      options.seed = seed;
      options.max_new_tokens = 50;
      options.sampling.temperature = seed == 0 ? 0.0 : 0.8;
      options.stop_token_ids = {stop};
      const GenerateResult expected = plain(kPrompt, options);
      for_every_drafter([&](TableTarget& target, DraftModel& draft, const DecoderOptions& how) {
        GenerateOptions longer = options;
        longer.stop_token_ids.clear();
        const SpeculativeDecoder decoder(target, &draft, how);
        const Tokens whole = decoder.generate(kPrompt, longer).token_ids;
        const GenerateResult result = decoder.generate(kPrompt, options);
        CHECK(result.token_ids == expected.token_ids);
        CHECK(result.stop_reason == expected.stop_reason);
        CHECK(target.kv == expected_kv(kPrompt, expected.token_ids));
        const Tokens& text = result.token_ids;
        CHECK(std::equal(text.begin(), text.end(), whole.begin()));
        CHECK(std::find(text.begin(), text.end() - 1, stop) == text.end() - 1);
        check_stats(result);
        const auto& by_depth = result.stats.accepted_by_depth;
        const int64_t accepted = std::accumulate(by_depth.begin(), by_depth.end(), int64_t{0});
        inside_a_path |= result.stats.emitted_tokens < result.stats.rounds + accepted;
      });
    }
  }
  CHECK(inside_a_path);
}

void a_stop_condition_sees_every_token_and_cuts_there() {
  TableTarget target(kVocab, kTable);
  NoisyDraft draft(target, 0.0);
  GenerateOptions options;
  options.sampling.temperature = 0.0;
  options.max_new_tokens = 40;
  const Tokens whole = plain(kPrompt, options).token_ids;
  size_t calls = 0;
  options.stop_when = [&](ArrayView<const int32_t> output) {
    CHECK_EQUAL(static_cast<size_t>(output.size()), ++calls);
    return output.size() == 13;
  };
  const GenerateResult result = SpeculativeDecoder(target, &draft).generate(kPrompt, options);
  CHECK(result.stop_reason == StopReason::kStopCondition);
  CHECK(result.token_ids == Tokens(whole.begin(), whole.begin() + 13));
  CHECK(target.kv == expected_kv(kPrompt, result.token_ids));
}

void the_callback_streams_every_token_once_and_may_cancel() {
  TableTarget target(kVocab, kTable);
  NoisyDraft draft(target, kNoise);
  const SpeculativeDecoder decoder(target, &draft);
  GenerateOptions options;
  options.max_new_tokens = 30;
  Tokens streamed;
  options.on_tokens = [&](ArrayView<const int32_t> tokens) {
    streamed.insert(streamed.end(), tokens.begin(), tokens.end());
    return true;
  };
  const Tokens whole = decoder.generate(kPrompt, options).token_ids;
  CHECK(streamed == whole);
  streamed.clear();
  options.on_tokens = [&](ArrayView<const int32_t> tokens) {
    streamed.insert(streamed.end(), tokens.begin(), tokens.end());
    return streamed.size() < 10;
  };
  const GenerateResult cancelled = decoder.generate(kPrompt, options);
  CHECK(cancelled.stop_reason == StopReason::kCancelled);
  CHECK(cancelled.token_ids == streamed && streamed.size() >= 10 && streamed.size() < 30);
  CHECK(std::equal(streamed.begin(), streamed.end(), whole.begin()));
  CHECK(target.kv == expected_kv(kPrompt, streamed));
}

void nothing_useless_is_drafted_near_the_end() {
  TableTarget target(kVocab, kTable);
  NoisyDraft draft(target, 0.0);
  const SpeculativeDecoder decoder(target, &draft, recipe("opt_tree", {}, "auto", 40));
  GenerateOptions options;
  options.sampling.temperature = 0.0;
  options.max_new_tokens = 0;
  const GenerateResult none = decoder.generate(kPrompt, options);
  CHECK(none.token_ids.empty() && target.num_prefills == 0);
  options.max_new_tokens = 1;
  CHECK_EQUAL(decoder.generate(kPrompt, options).stats.rounds, 0);
  options.max_new_tokens = 2;
  CHECK_EQUAL(decoder.generate(kPrompt, options).stats.drafted_nodes, 0);
  CHECK_EQUAL(draft.num_drafts, 0);
  options.max_new_tokens = 4;
  const Stats stats = decoder.generate(kPrompt, options).stats;
  CHECK_EQUAL(stats.rounds, 1);
  CHECK_EQUAL(stats.accepted_by_depth.size(), size_t{2});
}

void a_failed_round_leaves_the_decoder_usable() {
  TableTarget target(kVocab, kTable);
  NoisyDraft draft(target, kNoise);
  const SpeculativeDecoder decoder(target, &draft);
  GenerateOptions options;
  options.max_new_tokens = 30;
  const Tokens expected = plain(kPrompt, options).token_ids;
  Tokens streamed;
  options.on_tokens = [&](ArrayView<const int32_t> tokens) {
    streamed.insert(streamed.end(), tokens.begin(), tokens.end());
    return true;
  };
  draft.throw_at_draft = 3;
  CHECK_THROWS(std::runtime_error, decoder.generate(kPrompt, options));
  CHECK(target.kv == expected_kv(kPrompt, streamed));  // the failed round has changed nothing
  target.throw_at_forward = target.num_forwards + 3;
  CHECK_THROWS(std::runtime_error, decoder.generate(kPrompt, options));
  CHECK(decoder.generate(kPrompt, options).token_ids == expected);
  options.on_tokens = [](ArrayView<const int32_t>) -> bool { throw std::runtime_error("client"); };
  CHECK_THROWS(std::runtime_error, decoder.generate(kPrompt, options));
  options.on_tokens = nullptr;
  CHECK(decoder.generate(kPrompt, options).token_ids == expected);
}

void a_grammar_binds_every_token() {
  for (const double temperature : {0.0, 1.0}) {
    GenerateOptions options;
    options.max_new_tokens = 30;
    options.sampling.temperature = temperature;
    options.allow = [](const TokenTree& tree, ArrayView<const int32_t> text, uint32_t* allowed) {
      CHECK_EQUAL(tree.token[0], text[text.size() - 1]);
      for (int32_t node = 0; node < tree.num_nodes(); ++node) {  // even and odd tokens alternate
        for (int32_t t = 0; t < kVocab; ++t) {
          if (t % 2 != tree.token[node] % 2) allowed[node] |= 1u << t;
        }
      }
    };
    TableTarget target(kVocab, kTable);
    NoisyDraft draft(target, kNoise);
    const Tokens text = SpeculativeDecoder(target, &draft).generate(kPrompt, options).token_ids;
    CHECK(text == plain(kPrompt, options).token_ids);
    int32_t last = kPrompt.back();
    for (const int32_t token : text) {
      CHECK(token % 2 != last % 2);
      last = token;
    }
  }
}

void wrong_requests_are_refused_before_any_work() {
  TableTarget target(kVocab, kTable), small(kVocab - 1, kTable);
  NoisyDraft draft(target, kNoise);
  const SpeculativeDecoder decoder(target, &draft);
  GenerateOptions options;
  CHECK_THROWS(InvalidArgument, decoder.generate(Tokens{}, options));
  CHECK_THROWS(InvalidArgument, decoder.generate(Tokens{1, kVocab}, options));
  CHECK_THROWS(InvalidArgument, decoder.generate(Tokens{-1}, options));
  options.max_new_tokens = -1;
  CHECK_THROWS(InvalidArgument, decoder.generate(kPrompt, options));
  options = {};
  options.sampling.temperature = -1.0;
  CHECK_THROWS(InvalidArgument, decoder.generate(kPrompt, options));
  const SpeculativeDecoder greedy(target, &draft, recipe("opt_tree", {}, "greedy"));
  CHECK_THROWS(InvalidArgument, greedy.generate(kPrompt, GenerateOptions{}));
  CHECK_THROWS(InvalidArgument, SpeculativeDecoder(small, &draft));
  CHECK_THROWS(InvalidArgument, SpeculativeDecoder(target, &draft, recipe("no_such_builder")));
  CHECK_THROWS(InvalidArgument,
               SpeculativeDecoder(target, &draft, recipe("opt_tree", {{"no_such", 1.0}})));
  CHECK_THROWS(InvalidArgument,
               SpeculativeDecoder(target, &draft, recipe("opt_tree", {}, "no_such")));
  CHECK_THROWS(InvalidArgument,
               SpeculativeDecoder(target, &draft, recipe("opt_tree", {}, "recursive_rejection")));
  CHECK_THROWS(InvalidArgument,
               SpeculativeDecoder(target, &draft, recipe("opt_tree", {}, "auto", -1)));
  CHECK_EQUAL(target.num_prefills + target.num_forwards + draft.num_drafts, 0);
}

void a_text_that_exceeds_a_context_is_refused_and_one_that_fills_it_is_not() {
  class SmallDraft final : public DraftModel {
   public:
    int32_t max_context() const override { return 12; }
    void begin(ArrayView<const int32_t>, const RowsView&) override {}
    CandidateSource& draft(const DraftRequest&) override { return trie_; }
    void observe(ArrayView<const int32_t>, const RowsView&) override {}

   private:
    Trie trie_{Tokens{}, Tokens{}, std::vector<float>{}};
  } draft;
  TableTarget target(kVocab, kTable);
  target.context = 14;
  const auto generate = [&](DraftModel* drafter, int32_t max_new_tokens) {
    GenerateOptions options;
    options.max_new_tokens = max_new_tokens;
    return SpeculativeDecoder(target, drafter).generate(kPrompt, options).token_ids.size();
  };
  CHECK_THROWS(InvalidArgument, generate(nullptr, 10));
  CHECK_THROWS(InvalidArgument, generate(&draft, 8));
  CHECK_EQUAL(target.num_prefills, 0);
  CHECK_EQUAL(generate(nullptr, 9), size_t{9});
  CHECK_EQUAL(generate(&draft, 7), size_t{7});
}

void a_draft_outside_the_vocabulary_never_reaches_the_target() {
  class Wild final : public DraftModel {
   public:
    void begin(ArrayView<const int32_t>, const RowsView&) override {}
    CandidateSource& draft(const DraftRequest&) override { return trie_; }
    void observe(ArrayView<const int32_t>, const RowsView&) override {}

   private:
    Trie trie_{Tokens{-1}, Tokens{kVocab}, std::vector<float>{-0.5f}};
  } wild;
  TableTarget target(kVocab, kTable);
  CHECK_THROWS(InvalidArgument, SpeculativeDecoder(target, &wild).generate(kPrompt));
  CHECK_EQUAL(target.num_forwards, 0);
}

/// Costs of a target whose rows are cheap, with a drafter whose calls cost so much.
std::shared_ptr<CostModel> costs_with_calls_of(double seconds) {
  auto costs = std::make_shared<CostModel>();
  costs->target.push_back({0, 1, {{1, 8, 64}, {10.0, 11.0, 20.0}}});
  costs->draft_call = {{1, 64}, {seconds, 2.0 * seconds}};
  costs->drafts_by_level = true;
  return costs;
}

void measured_costs_choose_the_trees_and_never_the_text() {
  for (const double temperature : {0.0, 0.9}) {
    GenerateOptions options;
    options.sampling.temperature = temperature;
    options.max_new_tokens = 120;
    const Tokens expected = plain(kPrompt, options).token_ids;
    int64_t drafted[2];
    for (const int dear : {0, 1}) {
      TableTarget target(kVocab, kTable);
      NoisyDraft draft(target, kNoise);
      DecoderOptions how = recipe("opt_tree", {}, "auto", 40);
      how.costs = costs_with_calls_of(dear ? 1e3 : 1.0);
      how.acceptance = {{0.6, 0.2}};
      const SpeculativeDecoder decoder(target, &draft, how);
      const GenerateResult result = decoder.generate(kPrompt, options);
      CHECK(result.token_ids == expected);
      CHECK(target.kv == expected_kv(kPrompt, expected));
      check_stats(result);
      drafted[dear] = result.stats.drafted_nodes;
      const GenerateResult again =
          SpeculativeDecoder(decoder, target, &draft).generate(kPrompt, options);
      CHECK_EQUAL(again.stats.drafted_nodes, drafted[dear]);  // a function of the text
    }
    CHECK(drafted[0] > 120);
    CHECK(drafted[1] < 10);
  }
}

void drawn_trees_of_chosen_sizes_emit_the_same_text_again() {
  GenerateOptions options;
  options.max_new_tokens = 80;
  options.seed = 5;
  Tokens first;
  for (int run = 0; run < 2; ++run) {
    TableTarget target(kVocab, kTable);
    NoisyDraft draft(target, kNoise);
    DecoderOptions how = recipe("dyspec", {}, "traversal", 24);
    how.costs = costs_with_calls_of(0.5);
    how.acceptance = {{0.6, 0.2}};
    const GenerateResult result =
        SpeculativeDecoder(target, &draft, how).generate(kPrompt, options);
    CHECK(result.stats.drafted_nodes > 0);
    if (run == 0) first = result.token_ids;
    CHECK(result.token_ids == first);
  }
}

void costs_that_no_measurement_gives_are_refused() {
  TableTarget target(kVocab, kTable);
  NoisyDraft draft(target, kNoise);
  DecoderOptions how = recipe("opt_tree");
  how.costs = costs_with_calls_of(1.0);
  CHECK_THROWS(InvalidArgument, SpeculativeDecoder(target, &draft, how));  // no acceptance
  how.acceptance = {{0.6}};
  how.costs = costs_with_calls_of(-1.0);
  CHECK_THROWS(InvalidArgument, SpeculativeDecoder(target, &draft, how));
}

}  // namespace

int main() {
  greedy_speculative_text_equals_plain_greedy();
  an_exact_drafter_keeps_its_promises();
  sampled_target_only_text_equals_plain_sampling();
  recursive_rejection_has_the_target_law();
  stop_tokens_cut_where_plain_decoding_stops();
  a_stop_condition_sees_every_token_and_cuts_there();
  the_callback_streams_every_token_once_and_may_cancel();
  nothing_useless_is_drafted_near_the_end();
  a_failed_round_leaves_the_decoder_usable();
  a_grammar_binds_every_token();
  wrong_requests_are_refused_before_any_work();
  a_text_that_exceeds_a_context_is_refused_and_one_that_fills_it_is_not();
  a_draft_outside_the_vocabulary_never_reaches_the_target();
  measured_costs_choose_the_trees_and_never_the_text();
  drawn_trees_of_chosen_sizes_emit_the_same_text_again();
  costs_that_no_measurement_gives_are_refused();
  return 0;
}
