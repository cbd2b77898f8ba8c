// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "../checks.h"
#include "tournament.cuh"
#include "treespec/device/verify.h"
#include "treespec/verifier.h"
#include "verifiers/naive_tree.hd.h"
#include "verifiers/recursive_rejection.hd.h"
#include "verifiers/spectr.hd.h"
#include "verifiers/top_plus_one.hd.h"
#include "walk.cuh"

namespace treespec::device {
namespace {

/// Memory that a rule needs besides that of its rows.
enum class RuleMemory : uint8_t { kNone, kTournament, kScores };

/// What a verifier needs of the launch.
struct Plan {
  bool reads_law;
  bool bottom_up;
  RuleMemory rule_memory = RuleMemory::kNone;
};

template <class Rule>
void walk_trees(Stream stream, const Walk& walk) {
  simt::launch(stream, {walk.trees.batch, 1, sizeof(Walk::Shared)}, VerifyTrees<Rule>{walk});
}

/// A row of the table of verifiers on the device. `block` is `traversal` on chains, `token_level`
/// is `recursive_rejection` there; `greedy` needs temperature 0 and then any walk will do.
struct DeviceVerifier {
  std::string_view name;
  Plan plan;
};
constexpr DeviceVerifier kVerifiers[] = {
    {"greedy", {false, false}},
    {"target_only", {false, false}},
    {"token_level", {true, false}},
    {"block", {true, true}},
    {"naive_tree", {true, false}},
    {"recursive_rejection", {true, false}},
    {"spectr", {true, false}},
    {"traversal", {true, true}},
    {"top_plus_one", {true, false}},
    {"khisti", {true, false, RuleMemory::kTournament}},
    {"typical", {false, false, RuleMemory::kScores}},
};

Plan plan_of(std::string_view name) {
  for (const DeviceVerifier& one : kVerifiers) {
    if (one.name == name) return one.plan;
  }
  throw Unsupported(treespec::detail::message("device::verify: no kernel for ", name));
}

void walk_trees(Stream stream, std::string_view name, const Walk& walk) {
  if (name == "traversal" || name == "block") return walk_trees<BottomUpWalk>(stream, walk);
  if (name == "naive_tree") return walk_trees<TopDownWalk<NaiveTreeRule>>(stream, walk);
  if (name == "spectr") return walk_trees<TopDownWalk<SpecTrRule>>(stream, walk);
  if (name == "khisti") return walk_trees<TopDownWalk<KhistiRule<Tournament>>>(stream, walk);
  if (name == "typical") return walk_trees<TypicalWalk>(stream, walk);
  if (name == "top_plus_one") return walk_trees<TopDownWalk<TopPlusOneRule>>(stream, walk);
  if (name == "recursive_rejection" || name == "token_level") {
    return walk_trees<TopDownWalk<RecursiveRejectionRule>>(stream, walk);
  }
  return walk_trees<TargetOnlyWalk>(stream, walk);
}

int32_t support_of(const DraftLaw& law) {
  return law.token != nullptr ? law.max_support : law.vocab_size;
}

/// Rows whose numbers are held at once.
int32_t levels_of(const Plan& plan, const Verdicts& verdicts) {
  return plan.bottom_up ? verdicts.max_depth + 1 : 1;
}

size_t numbers_bytes(const Plan& plan, const VerifyInput& input, const Verdicts& verdicts) {
  if (!plan.reads_law) return 0;
  return sizeof(double) * 2 * static_cast<size_t>(input.trees.batch) *
         static_cast<size_t>(levels_of(plan, verdicts)) *
         static_cast<size_t>(support_of(input.law));
}

/// Per sequence.
size_t rule_bytes(const Plan& plan, const VerifyInput& input) {
  switch (plan.rule_memory) {
    case RuleMemory::kNone:
      return 0;
    case RuleMemory::kTournament:
      return Tournament::bytes(support_of(input.law));
    case RuleMemory::kScores:
      return TypicalWalk::bytes(input.trees.max_nodes);
  }
  return 0;
}

void run(Stream stream, std::string_view name, const VerifyInput& input, void* workspace,
         const Verdicts& verdicts, uint32_t* status) {
  const Plan plan = plan_of(name);
  const RowsView& rows = input.logits;
  const int64_t num_blocks = shared::num_blocks(rows.width);
  const auto vocab_size = static_cast<int32_t>(rows.width);
  auto* numbers = static_cast<double*>(workspace);
  char* rule_memory = static_cast<char*>(workspace) + numbers_bytes(plan, input, verdicts);
  const size_t own_bytes = rule_bytes(plan, input);
  void* behind = rule_memory + own_bytes * static_cast<size_t>(input.trees.batch);
  const RowSums sums = RowSums::at(behind, rows.num_rows, num_blocks);
  const uint32_t* table =
      count_history(stream, input.changes, input.trees.batch, vocab_size,
                    static_cast<char*>(behind) + RowSums::bytes(rows.num_rows, num_blocks));
  const DraftLaw law = plan.reads_law ? input.law : DraftLaw{};
  const Temperatures temperatures{input.sampling, name == "greedy"};
  sum_rows(stream, {rows, input.trees, law, temperatures, input.changes, table}, sums);
  walk_trees(stream, name,
             Walk{LogitReader{rows, vocab_size, static_cast<int32_t>(num_blocks)}, input.trees,
                  input.proposal, law, temperatures, input.changes, table, input.seed,
                  input.sequence_id, input.position, sums, numbers, levels_of(plan, verdicts),
                  support_of(law), rule_memory, static_cast<int64_t>(own_bytes), verdicts, status});
}

void check(std::string_view name, const VerifyInput& input, const Verdicts& verdicts) {
  const char* who = "device::verify";
  const VerifierInfo& info = verifier_info(name);
  check_verifier(info, input.proposal, true, input.lossy);
  const Plan plan = plan_of(name);
  check_envelope(who, input.trees);
  const RowsView& rows = input.logits;
  check_logits(who, rows);
  const int64_t num_rows = int64_t{input.trees.batch} * input.trees.max_nodes;
  TREESPEC_CHECK(rows.num_rows == num_rows, who,
                 ": logits must have batch * max_nodes = ", num_rows, " rows, got ", rows.num_rows);
  TREESPEC_CHECK(verdicts.max_depth >= 0, who, ": max_depth must be >= 0, got ",
                 verdicts.max_depth);
  TREESPEC_CHECK(!plan.bottom_up || verdicts.max_depth <= kMostTraversalDepth, who,
                 ": max_depth of ", name, " must be at most ", kMostTraversalDepth, ", got ",
                 verdicts.max_depth);
  TREESPEC_CHECK(!plan.reads_law || input.law.row_of_node != nullptr, who,
                 ": law must be given for ", name);
  TREESPEC_CHECK(input.law.vocab_size <= rows.width, who,
                 ": vocabulary of the law must be at most the target's (", rows.width, "), got ",
                 input.law.vocab_size);
}

}  // namespace

size_t verify_workspace_bytes(std::string_view verifier, const VerifyInput& input,
                              const Verdicts& verdicts) {
  check(verifier, input, verdicts);
  const Plan plan = plan_of(verifier);
  return numbers_bytes(plan, input, verdicts) +
         rule_bytes(plan, input) * static_cast<size_t>(input.trees.batch) +
         RowSums::bytes(input.logits.num_rows, shared::num_blocks(input.logits.width)) +
         use_table_bytes(input.changes, input.trees.batch, input.logits.width);
}

void verify(Stream stream, std::string_view verifier, const VerifyInput& input, void* workspace,
            size_t workspace_bytes, const Verdicts& verdicts, uint32_t* status) {
  check_workspace("device::verify", workspace, workspace_bytes,
                  verify_workspace_bytes(verifier, input, verdicts));
  run(stream, verifier, input, workspace, verdicts, status);
}

}  // namespace treespec::device
