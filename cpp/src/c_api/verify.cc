// SPDX-License-Identifier: Apache-2.0
// Verification, plain sampling, and the KV commit that follows.
#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "c_api/border.h"
#include "c_api/handles.h"
#include "c_api/sampling.h"
#include "c_api/structs.h"
#include "treespec/error.h"
#include "treespec/kv_commit.h"
#include "treespec/sampling.h"
#include "treespec/target_row.h"
#include "treespec/verifier.h"

namespace treespec::c {

SamplingParams sampling_of(const char* who, const treespec_sampling* given) {
  SamplingParams params;
  std::vector<treespec_logit_bias> bias;
  const treespec_sampling known =
      read_optional_struct(who, "sampling", given, c_sampling(params, bias));
  params.temperature = known.temperature;
  params.top_k = known.top_k;
  params.top_p = known.top_p;
  params.min_p = known.min_p;
  params.repetition_penalty = known.repetition_penalty;
  params.presence_penalty = known.presence_penalty;
  params.frequency_penalty = known.frequency_penalty;
  for (const auto& one : view(who, "logit_bias", known.logit_bias, known.num_logit_bias)) {
    check_reserved(who, "logit_bias", one.reserved);
    params.logit_bias.emplace_back(one.token, one.bias);
  }
  check_sampling(params);
  return params;
}

treespec_sampling c_sampling(const SamplingParams& params, std::vector<treespec_logit_bias>& bias) {
  bias.clear();
  for (const auto& [token, value] : params.logit_bias) bias.push_back({token, 0, value});
  treespec_sampling out{};
  out.struct_size = sizeof(out);
  out.temperature = params.temperature;
  out.top_p = params.top_p;
  out.min_p = params.min_p;
  out.repetition_penalty = params.repetition_penalty;
  out.presence_penalty = params.presence_penalty;
  out.frequency_penalty = params.frequency_penalty;
  out.logit_bias = bias.data();
  out.num_logit_bias = static_cast<int32_t>(bias.size());
  out.top_k = params.top_k;
  return out;
}

}  // namespace treespec::c

namespace {

using namespace treespec;     // NOLINT
using namespace treespec::c;  // NOLINT

/// What a row depends on beside its logits.
struct Processing {
  SamplingParams params;
  History history;
  const uint32_t* allowed = nullptr;

  /// `num_rows`, `width`: what `allowed` must fit.
  Processing(const char* who, const treespec_logit_options* given, int64_t num_rows,
             int64_t width) {
    const auto known = read_optional_struct(who, "processing", given);
    params = sampling_of(who, known.sampling);
    history = {view(who, "prefix_ids", known.prefix_ids, known.num_prefix_ids),
               known.prompt_length};
    TREESPEC_CHECK(known.prompt_length >= 0 && known.prompt_length <= known.num_prefix_ids, who,
                   ": prompt_length must be in [0, ", known.num_prefix_ids, "], got ",
                   known.prompt_length);
    TREESPEC_CHECK(known.num_prefix_ids > 0 || !params.has_penalties(), who,
                   ": prefix_ids must be given, the penalties count them");
    if (known.allowed == nullptr && known.num_allowed_words == 0) return;
    const int64_t words = num_rows * ((width + 31) / 32);
    TREESPEC_CHECK(known.num_allowed_words == words, who, ": num_allowed_words must be ", words,
                   " for ", num_rows, " rows of ", width, " tokens, got ", known.num_allowed_words);
    allowed = &required(who, "allowed", known.allowed);
  }
};

/// Everything of a verification but the target's rows.
class Verification {
 public:
  Verification(const char* who, const treespec_tree* tree, const treespec_rows* draft_probs,
               const treespec_verify_options* options, treespec_verdict* verdict)
      : tree_(tree_of(who, tree)),
        law_(tree_.draft_probs),
        options_(read_optional_struct(who, "options", options)),
        verdict_(read_struct(who, "verdict", verdict)),
        out_(*verdict) {
    check_reserved(who, "options", options_.reserved);
    output(who, "verdict.accepted_nodes", verdict_.accepted_nodes, verdict_.capacity,
           tree_.num_nodes());
    if (draft_probs == nullptr) return;
    const RowsView rows = rows_of(who, "draft_probs", draft_probs);
    TREESPEC_CHECK(rows.num_rows == tree_.num_nodes(), who, ": draft_probs must be [",
                   tree_.num_nodes(), ", V], got [", rows.num_rows, ", ", rows.width, "]");
    TREESPEC_CHECK(rows.dtype == DType::kFloat32 || rows.dtype == DType::kFloat64, who,
                   ": draft_probs must be float32 or float64");
    law_ = DraftLaw(rows);
  }

  const TokenTree& tree() const { return tree_; }

  void run(TargetRows& rows, bool greedy) const {
    const std::string_view asked = options_.verifier != nullptr ? options_.verifier : "auto";
    const std::string_view name = asked == "auto" ? auto_verifier(tree_.proposal, greedy) : asked;
    const Verdict verdict =
        verify(name, tree_, rows, law_, Coins(key_of(options_.key)), options_.lossy != 0);
    std::copy(verdict.accepted_nodes.begin(), verdict.accepted_nodes.end(),
              verdict_.accepted_nodes);
    if (verdict_.tokens != nullptr) {
      std::copy(verdict.tokens.begin(), verdict.tokens.end(), verdict_.tokens);
    }
    out_.num_accepted = verdict.num_accepted();
    out_.next_token = verdict.next_token;
  }

 private:
  const TokenTree& tree_;
  DraftLaw law_;
  treespec_verify_options options_;
  treespec_verdict verdict_;
  treespec_verdict& out_;
};

const VerifierInfo* verifier_at(int64_t i) {
  return i >= 0 && i < verifiers().size() ? &verifiers()[i] : nullptr;
}

}  // namespace

// The names and summaries of the table are literals, hence zero-terminated.
int64_t treespec_num_verifiers(void) { return verifiers().size(); }
const char* treespec_verifier_name(int64_t i) {
  const VerifierInfo* info = verifier_at(i);
  return info != nullptr ? info->name.data() : nullptr;
}
const char* treespec_verifier_summary(int64_t i) {
  const VerifierInfo* info = verifier_at(i);
  return info != nullptr ? info->summary.data() : nullptr;
}

const char* treespec_auto_verifier(treespec_proposal proposal, int32_t greedy) {
  if (proposal < TREESPEC_DETERMINISTIC || proposal > TREESPEC_TOP_PLUS_ONE) return nullptr;
  return auto_verifier(static_cast<Proposal>(proposal), greedy != 0).data();
}

treespec_status treespec_check_verifier(const char* verifier, treespec_proposal proposal,
                                        int32_t chain, int32_t lossy) {
  return guarded(__func__, [&](const char* who) {
    check_verifier(verifier_info(&required(who, "verifier", verifier)), proposal_of(who, proposal),
                   chain != 0, lossy != 0);
  });
}

treespec_status treespec_sampling_init(treespec_sampling* sampling, size_t struct_size) {
  std::vector<treespec_logit_bias> none;
  return init_struct(__func__, "sampling", sampling, struct_size,
                     c_sampling(SamplingParams{}, none));
}

treespec_status treespec_verify(const treespec_tree* tree, const treespec_rows* target_probs,
                                const treespec_rows* draft_probs,
                                const treespec_verify_options* options, treespec_verdict* verdict) {
  return guarded(__func__, [&](const char* who) {
    const Verification verification(who, tree, draft_probs, options, verdict);
    ProbabilityRows rows(rows_of(who, "target_probs", target_probs),
                         verification.tree().num_nodes());
    verification.run(rows, /*greedy=*/false);
  });
}

treespec_status treespec_verify_logits(const treespec_tree* tree,
                                       const treespec_rows* target_logits,
                                       const treespec_rows* draft_probs,
                                       const treespec_logit_options* processing,
                                       const treespec_verify_options* options,
                                       treespec_verdict* verdict) {
  return guarded(__func__, [&](const char* who) {
    const Verification verification(who, tree, draft_probs, options, verdict);
    const RowsView logits = rows_of(who, "target_logits", target_logits);
    const Processing known(who, processing, logits.num_rows, logits.width);
    LogitRows rows(logits, verification.tree(), known.params, known.history, known.allowed);
    verification.run(rows, known.params.temperature == 0.0);
  });
}

treespec_status treespec_sample(const treespec_rows* logits, int64_t row,
                                const treespec_logit_options* processing, const treespec_key* key,
                                int32_t* token) {
  return guarded(__func__, [&](const char* who) {
    const RowsView rows = rows_of(who, "logits", logits);
    TREESPEC_CHECK(row >= 0 && row < rows.num_rows, who, ": row must be in [0, ", rows.num_rows,
                   "), got ", row);
    TREESPEC_CHECK(rows.width > 0, who, ": logits must be [num_rows, V >= 1], got width 0");
    const Processing known(who, processing, 1, rows.width);
    const RoundKey named = key_of(required(who, "key", key));
    required(who, "token", token);
    TargetRow law;
    process_logits(rows, row, known.params, known.history, {}, known.allowed, {}, law);
    *token = sample_at_position(law, named.seed, named.sequence_id, named.position);
  });
}

treespec_status treespec_commit_kv(const treespec_kv_buffer* buffers, int64_t num_buffers,
                                   int64_t base, const int32_t* nodes, int64_t num_nodes) {
  return guarded(__func__, [&](const char* who) {
    std::vector<KvBuffer> known;
    for (const treespec_kv_buffer& one : view(who, "buffers", buffers, num_buffers)) {
      TREESPEC_CHECK(one.outer >= 0 && one.row_bytes >= 0 && one.num_rows >= 0, who,
                     ": outer, row_bytes and num_rows of a buffer must be >= 0, got ", one.outer,
                     ", ", one.row_bytes, " and ", one.num_rows);
      TREESPEC_CHECK(one.data != nullptr || one.outer == 0 || one.row_bytes == 0, who,
                     ": data of a buffer must not be NULL");
      known.push_back(
          {one.data, one.outer, one.outer_stride, one.row_stride, one.row_bytes, one.num_rows});
    }
    commit_kv(known, base, view(who, "nodes", nodes, num_nodes));
  });
}
