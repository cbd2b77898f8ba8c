// SPDX-License-Identifier: Apache-2.0
// device::score_lists gives the scores of the options score_temperature and calibration: trees over
// its lists are those of the CPU's builders with these options, ties included.
#include "device/building.h"
#include "treespec/device/scores.h"

namespace {

using namespace treespec;        // NOLINT
using namespace treespec::test;  // NOLINT

Tables random_tables(std::mt19937& random, int32_t most_depth, int32_t width) {
  const bool marginals = below(random, 2) == 0;
  const int32_t rows = marginals ? 1 : 1 + below(random, 5);
  return Tables::random(random, marginals ? SourceKind::kMarginals : SourceKind::kTransitions,
                        1 + below(random, 3), 1 + below(random, most_depth), rows, width);
}

/// Best-first trees of `budget` nodes and at most this depth, on both sides.
void check_trees(std::mt19937& random, const Tables& tables, int32_t budget, int32_t max_depth) {
  const DeviceScores scores(random);
  BuilderOptions options{{"max_depth", int64_t{max_depth}}};
  scores.add_to(options);
  DeviceTables lists(tables);
  lists.score(scores.rule(), tables.batch);
  const DeviceTrees trees(tables.batch, budget + 1, budget);
  const std::vector<int32_t> each(static_cast<size_t>(tables.batch), budget);
  const DeviceArray<int32_t> budgets(each);
  const DeviceArray<uint32_t> status(no_status(tables.batch));
  device::build_best_first({}, lists.view(), max_depth, {budgets.data()}, trees.view(),
                           status.data());
  const auto builder = make_builder("dtree", options);
  for (int32_t b = 0; b < tables.batch; ++b) {
    CHECK_EQUAL(status.to_host()[static_cast<size_t>(b)], 0u);
    const auto source = tables.source(b);
    trees.check_equal_to(build_tree(*builder, "dtree", *source, budget), b);
  }
}

void equals_the_cpu() {
  std::mt19937 random(41);
  for (int i = 0; i < num_cases(1000); ++i) {
    set_order(i % num_orders());
    check_trees(random, random_tables(random, 6, 1 + below(random, 40)), below(random, 60),
                1 + below(random, 8));
  }
}

/// Trees as wide as the lists and one level deep show every score.
void every_entry_of_a_list_equals_the_cpu() {
  std::mt19937 random(42);
  for (int i = 0; i < num_cases(300); ++i) {
    set_order(i % num_orders());
    const int32_t width = i % 30 == 0 ? device::kMostCandidates : 1 + below(random, 200);
    check_trees(random, random_tables(random, 1, width), width, 1);
  }
}

/// Lists of one sequence, in arrays of its own.
struct OneList {
  std::vector<int32_t> token;
  std::vector<float> logprob;

  std::vector<float> scored(const device::ScoreRule& rule) const {
    const auto width = static_cast<int32_t>(token.size());
    const DeviceArray<int32_t> from_token(token), to_token(token.size());
    const DeviceArray<float> from(logprob), to(logprob.size());
    device::score_lists({}, rule, {1, 1, 1, width, from_token.data(), from.data(), nullptr},
                        {1, 1, 1, width, to_token.data(), to.data(), nullptr});
    CHECK(from_token.to_host() == token);
    CHECK(std::memcmp(from.to_host().data(), logprob.data(), 4 * logprob.size()) == 0);
    return to.to_host();
  }
};

/// So that a builder says what is wrong, where it reads it.
void lists_that_break_the_rules_are_handed_on() {
  const float lowest = -std::numeric_limits<float>::infinity();
  device::ScoreRule rule;
  rule.temperature = 0.5;
  for (const std::vector<float>& wrong : {std::vector<float>{NAN, -1.0f, -2.0f},
                                          {-1.0f, NAN, lowest},
                                          {-1.0f, -2.0f, INFINITY},
                                          {0.5f, -1.0f, -2.0f},
                                          {lowest, lowest, lowest}}) {
    const std::vector<float> handed = OneList{{3, 5, 7}, wrong}.scored(rule);
    CHECK(std::memcmp(handed.data(), wrong.data(), 12) == 0);
  }
}

void scores_without_a_rule_are_log_probabilities() {
  const OneList list{{3, 5, 7}, {-0.5f, -1.5f, -2.5f}};
  CHECK(list.scored({}) == list.logprob);
}

void wrong_arguments_are_refused() {
  int32_t token = 0;
  float logprob = 0.0f;
  const device::TransitionLists good{1, 1, 1, 1, &token, &logprob, nullptr};
  const auto call = [&](const auto& change) {
    device::TransitionLists lists = good;
    device::ScoreRule rule;
    change(lists, rule);
    device::score_lists({}, rule, lists, good);
  };
  using Lists = device::TransitionLists;
  using Rule = device::ScoreRule;
  CHECK_THROWS(InvalidArgument, call([](Lists& lists, Rule&) { lists.batch = -1; }));
  CHECK_THROWS(InvalidArgument, call([](Lists& lists, Rule&) { lists.batch = 2; }));
  CHECK_THROWS(InvalidArgument, call([](Lists& lists, Rule&) { lists.depth = -1; }));
  CHECK_THROWS(InvalidArgument, call([](Lists& lists, Rule&) { lists.num_rows = 0; }));
  CHECK_THROWS(InvalidArgument, call([](Lists& lists, Rule&) { lists.width = 1025; }));
  CHECK_THROWS(InvalidArgument, call([](Lists& lists, Rule&) { lists.token = nullptr; }));
  CHECK_THROWS(InvalidArgument, call([&](Lists& lists, Rule&) { lists.next = &token; }));
  CHECK_THROWS(InvalidArgument, call([](Lists&, Rule& rule) { rule.temperature = 0.0; }));
  CHECK_THROWS(InvalidArgument, call([](Lists&, Rule& rule) { rule.temperature = NAN; }));
  CHECK_THROWS(InvalidArgument, call([](Lists&, Rule& rule) { rule.calibration.num_points = 1; }));
}

}  // namespace

int main() {
  if (!has_device()) return kSkipped;
  equals_the_cpu();
  every_entry_of_a_list_equals_the_cpu();
  lists_that_break_the_rules_are_handed_on();
  scores_without_a_rule_are_log_probabilities();
  wrong_arguments_are_refused();
  return 0;
}
