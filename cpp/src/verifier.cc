// SPDX-License-Identifier: Apache-2.0
// Rows, laws and coins that every verifier reads, and the rule which pairs are lossless.
#include "treespec/verifier.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "row_ops.h"
#include "shared/fixed_point.hd.h"
#include "treespec/error.h"

namespace treespec {
namespace {

constexpr double kLargestSumError = 1e-3;

/// Calls `visit(token, probability)` for a row and checks that it is a law.
template <class T, class Visit>
void read_law(const char* who, const T* row, int64_t size, int32_t node, Visit&& visit) {
  double sum = 0.0;
  bool sound = true;
  for (int64_t t = 0; t < size; ++t) {
    sound &= row[t] >= T{0};  // false for NaN
    sum += row[t];
    visit(static_cast<int32_t>(t), static_cast<double>(row[t]));
  }
  TREESPEC_CHECK(sound, who, ": row ", node, " must not contain NaN or negative entries");
  TREESPEC_CHECK(std::abs(sum - 1.0) <= kLargestSumError, who, ": row ", node,
                 " must sum to 1 within ", kLargestSumError, ", got ", sum);
}

template <class Visit>
void read_law(const char* who, const RowsView& probs, int32_t node, Visit&& visit) {
  const int64_t at = node * probs.row_stride;
  if (probs.dtype == DType::kFloat64) {
    read_law(who, static_cast<const double*>(probs.data) + at, probs.width, node, visit);
  } else {
    read_law(who, static_cast<const float*>(probs.data) + at, probs.width, node, visit);
  }
}

void check_law_dtype(const char* who, DType dtype) {
  TREESPEC_CHECK(dtype == DType::kFloat32 || dtype == DType::kFloat64, who,
                 ": dtype must be float32 or float64");
}

double checked_coin(const char* which, double u) {
  TREESPEC_CHECK(u >= 0.0 && u < 1.0, "coins: ", which, " must be in [0, 1), got ", u);
  return u;
}

double given_coin(const char* which, const std::vector<std::vector<double>>* coins, int32_t node,
                  int32_t place) {
  TREESPEC_CHECK(coins != nullptr && node < static_cast<int32_t>(coins->size()) &&
                     place < static_cast<int32_t>((*coins)[node].size()),
                 "coins: ", which, " must have entry ", place, " of node ", node);
  return checked_coin(which, (*coins)[node][place]);
}

std::string lossless_names(Proposal proposal, bool chain) {
  std::string names;
  for (const VerifierInfo& info : verifiers()) {
    if (!is_lossless(info, proposal) || (info.chain_only && !chain)) continue;
    names.append(names.empty() ? "" : ", ").append(info.name);
  }
  return names;
}

bool is_chain(const TokenTree& tree) {
  for (int32_t i = 0; i < tree.num_nodes(); ++i) {
    if (tree.draws(i).size() > 1) return false;
  }
  return true;
}

}  // namespace

ProbabilityRows::ProbabilityRows(const RowsView& probs, int32_t num_nodes) : probs_(probs) {
  check_law_dtype("target_probs", probs.dtype);
  TREESPEC_CHECK(probs.num_rows == num_nodes && probs.width > 0, "target_probs: shape must be [",
                 num_nodes, ", V >= 1] for ", num_nodes, " nodes, got [", probs.num_rows, ", ",
                 probs.width, "]");
  for (int32_t i = 0; i < num_nodes; ++i) {
    read_law("target_probs", probs_, i, [](int32_t, double) {});
  }
}

void ProbabilityRows::load(int32_t node, ArrayView<const int32_t> without, TargetRow& row) {
  row.load_weights(probs_, node, without);
}

int32_t ProbabilityRows::argmax(int32_t node) {
  int32_t best = 0;
  double most = 0.0;
  read_law("target_probs", probs_, node, [&](int32_t token, double prob) {
    if (prob <= most) return;
    most = prob;
    best = token;
  });
  return best;
}

LogitRows::LogitRows(const RowsView& logits, const TokenTree& tree, const SamplingParams& params,
                     const History& history, const uint32_t* allowed)
    : logits_(logits), tree_(tree), params_(params), history_(history), allowed_(allowed) {
  check_sampling(params);
  TREESPEC_CHECK(logits.num_rows == tree.num_nodes() && logits.width > 0,
                 "target_logits: shape must be [", tree.num_nodes(), ", V >= 1] for ",
                 tree.num_nodes(), " nodes, got [", logits.num_rows, ", ", logits.width, "]");
  TREESPEC_CHECK(history.prompt_length >= 0 && history.prompt_length <= history.token_ids.size(),
                 "prompt_length: must be in [0, ", history.token_ids.size(), "], got ",
                 history.prompt_length);
}

ArrayView<const int32_t> LogitRows::path_to(int32_t node) {
  path_.clear();
  for (int32_t i = node; i > 0; i = tree_.parent[i]) path_.push_back(tree_.token[i]);
  return path_;
}

const uint32_t* LogitRows::allowed_after(int32_t node) const {
  return allowed_ != nullptr ? allowed_ + node * ((logits_.width + 31) / 32) : nullptr;
}

void LogitRows::load(int32_t node, ArrayView<const int32_t> without, TargetRow& row) {
  process_logits(logits_, node, params_, history_, path_to(node), allowed_after(node), without,
                 row);
}

int32_t LogitRows::argmax(int32_t node) {
  return argmax_logits(logits_, node, params_, history_, path_to(node), allowed_after(node));
}

int32_t DraftLaw::vocab_size() const {
  return rows_ != nullptr ? rows_->vocab_size : static_cast<int32_t>(probs_.width);
}

void DraftLaw::load(int32_t node, std::vector<int32_t>& token, std::vector<double>& prob) const {
  token.clear();
  prob.clear();
  const auto take = [&](int32_t t, double p) {
    token.push_back(t);
    prob.push_back(p);
  };
  if (rows_ == nullptr) return read_law("draft_probs", probs_, node, take);
  const int32_t row = rows_->row_of_node[node];
  const std::string problem = law_row_problem(*rows_, row);
  TREESPEC_CHECK(problem.empty(), "draft_probs: row of node ", node, " ", problem);
  for (int64_t e = rows_->row_offset[row]; e < rows_->row_offset[row + 1]; ++e) {
    take(rows_->token[e], rows_->prob[e]);
  }
}

Coins::Coins(const RoundKey& key, const std::vector<std::vector<double>>* accept,
             const std::vector<double>* sample, const std::vector<std::vector<double>>* select)
    : key_(key), accept_(accept), sample_(sample), select_(select) {}

double Coins::accept(int32_t node, int32_t draw) const {
  if (accept_ != nullptr) return given_coin("accept", accept_, node, draw);
  return uniform(key_, Purpose::kAccept, static_cast<uint32_t>(node), static_cast<uint32_t>(draw));
}

double Coins::select(int32_t node, int32_t merge) const {
  if (injected()) return given_coin("select", select_, node, merge);
  return uniform(key_, Purpose::kSelect, static_cast<uint32_t>(node), static_cast<uint32_t>(merge));
}

double Coins::sample(int32_t node) const {
  if (sample_ == nullptr) {
    return uniform(key_, Purpose::kSample, static_cast<uint32_t>(node), 0);
  }
  TREESPEC_CHECK(node < static_cast<int32_t>(sample_->size()),
                 "coins: sample must have an entry for node ", node);
  return checked_coin("sample", (*sample_)[node]);
}

bool is_lossless(const VerifierInfo& info, Proposal proposal) {
  return (info.proposals & proposal_bit(proposal)) != 0;
}

bool is_lossy(const VerifierInfo& info) { return info.proposals == 0; }

void check_verifier(const VerifierInfo& info, Proposal proposal, bool chain, bool lossy) {
  if (is_lossy(info)) {
    TREESPEC_CHECK(lossy, info.name, ": is lossy and must be asked for with lossy = true");
    return;
  }
  TREESPEC_CHECK(is_lossless(info, proposal), info.name, ": would bias a ", proposal_name(proposal),
                 " tree; verifiers that fit: ", lossless_names(proposal, chain));
  TREESPEC_CHECK(!info.chain_only || chain, info.name,
                 ": tree must be a chain (one draw per node); verifiers that fit: ",
                 lossless_names(proposal, chain));
}

void check_verifier(const VerifierInfo& info, const TokenTree& tree, bool has_draft_law,
                    bool lossy) {
  check_verifier(info, tree.proposal, is_chain(tree), lossy);
  const bool drew = tree.num_nodes() > 1;
  TREESPEC_CHECK(!info.needs_draft_law || has_draft_law || !drew, info.name,
                 ": draft_probs must be given, the tree carries no draft law");
}

std::string_view auto_verifier(Proposal proposal, bool greedy) {
  if (greedy) return "greedy";
  switch (proposal) {
    case Proposal::kDeterministic:
      return "target_only";
    case Proposal::kIid:
    case Proposal::kWithoutReplacement:
      return "traversal";
    case Proposal::kTopPlusOne:
      return "top_plus_one";
  }
  throw InvalidArgument("auto_verifier: unknown proposal mode");
}

void check_round(std::string_view name, const TokenTree& tree, int32_t vocab_size,
                 int32_t law_vocab_size, bool lossy) {
  require_sound("verify", tree);
  check_verifier(verifier_info(name), tree, law_vocab_size > 0, lossy);
  TREESPEC_CHECK(law_vocab_size <= vocab_size,
                 "draft_probs: vocabulary must be at most the target's (", vocab_size, "), got ",
                 law_vocab_size);
  for (int32_t i = 1; i < tree.num_nodes(); ++i) {
    TREESPEC_CHECK(tree.token[i] < vocab_size, "tree: token[", i,
                   "] must be below the target's vocabulary (", vocab_size, "), got ",
                   tree.token[i]);
  }
}

Verdict verify(std::string_view name, const TokenTree& tree, TargetRows& target_rows,
               const DraftLaw& draft_law, const Coins& coins, bool lossy) {
  check_round(name, tree, target_rows.vocab_size(), draft_law.vocab_size(), lossy);
  Verdict verdict = make_verifier(name)->verify(tree, target_rows, draft_law, coins);
  for (const int32_t node : verdict.accepted_nodes) verdict.tokens.push_back(tree.token[node]);
  verdict.tokens.push_back(verdict.next_token);
  return verdict;
}

std::vector<double> node_probability(std::string_view name, const TokenTree& tree,
                                     TargetRows& target_rows, const DraftLaw& draft_law,
                                     bool lossy) {
  check_round(name, tree, target_rows.vocab_size(), draft_law.vocab_size(), lossy);
  return make_verifier(name)->node_probability(tree, target_rows, draft_law);
}

}  // namespace treespec
