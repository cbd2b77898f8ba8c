// SPDX-License-Identifier: Apache-2.0
// SpeculativeDecoder: the round, and what surrounds it.
#include "treespec/decoder.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <optional>
#include <utility>

#include "treespec/error.h"
#include "treespec/tree_mask.h"

namespace treespec {
namespace {

/// Adds the life of the object to a counter, also when the step throws.
class StepTimer {
 public:
  explicit StepTimer(double& seconds) : seconds_(seconds) {}
  ~StepTimer() {
    seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  StepTimer(const StepTimer&) = delete;
  StepTimer& operator=(const StepTimer&) = delete;

 private:
  double& seconds_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// A drafter's source as the builder sees it: no deeper than is useful, its time booked as
/// drafting.
class RoundSource final : public CandidateSource {
 public:
  RoundSource(CandidateSource& source, int32_t max_depth, Stats& stats)
      : source_(source), max_depth_(std::min(max_depth, source.max_depth())), stats_(stats) {}
  SourceKind kind() const override { return source_.kind(); }
  int32_t max_depth() const override { return max_depth_; }
  ArrayView<const CandidateRow> rows(ArrayView<const FrontierNode> nodes) override {
    double seconds = 0.0;
    ArrayView<const CandidateRow> result;
    {
      StepTimer timer(seconds);
      result = source_.rows(nodes);
    }
    stats_.seconds[static_cast<int>(Step::kDraft)] += seconds;
    stats_.seconds[static_cast<int>(Step::kBuild)] -= seconds;
    return result;
  }

 private:
  CandidateSource& source_;
  int32_t max_depth_;
  Stats& stats_;
};

void check_logits(const RowsView& logits, int64_t num_rows, int32_t vocab_size, const char* call) {
  TREESPEC_CHECK(
      logits.data != nullptr && logits.num_rows == num_rows && logits.width == vocab_size,
      "TargetModel::", call, ": logits must be [", num_rows, ", ", vocab_size, "], got [",
      logits.num_rows, ", ", logits.width, "]");
}

void check_tokens(ArrayView<const int32_t> token_ids, int32_t vocab_size, const char* what) {
  for (const int32_t token : token_ids) {
    TREESPEC_CHECK(token >= 0 && token < vocab_size, what, " must be in [0, ", vocab_size,
                   "), got ", token);
  }
}

/// Place of `node` among the distinct children of its parent, in draw order.
size_t sibling_rank(const TokenTree& tree, int32_t node) {
  std::vector<int32_t> seen;
  for (const int32_t child : tree.draws(tree.parent[node])) {
    if (child == node) break;
    if (std::find(seen.begin(), seen.end(), child) == seen.end()) seen.push_back(child);
  }
  return seen.size();
}

void count_at(std::vector<int64_t>& counts, size_t place) {
  if (counts.size() <= place) counts.resize(place + 1, 0);
  ++counts[place];
}

DecoderOptions checked(DecoderOptions options) {
  TREESPEC_CHECK(options.node_budget >= 0,
                 "SpeculativeDecoder: node_budget must be at least 0, got ", options.node_budget);
  return options;
}

void check_models(const TargetModel& target, const DraftModel* draft) {
  const int32_t vocab_size = target.vocab_size();
  TREESPEC_CHECK(vocab_size > 0,
                 "SpeculativeDecoder: the target's vocab_size must be positive, got ", vocab_size);
  TREESPEC_CHECK(draft == nullptr || draft->vocab_size() <= vocab_size,
                 "SpeculativeDecoder: the draft's vocab_size must not exceed the target's ",
                 vocab_size, ", got ", draft == nullptr ? 0 : draft->vocab_size());
}

}  // namespace

/// One generation: committed text, counters, and the round.
class SpeculativeDecoder::Run {
 public:
  Run(const SpeculativeDecoder& decoder, ArrayView<const int32_t> prompt,
      const GenerateOptions& options)
      : target_(*decoder.target_),
        draft_(decoder.options_.node_budget > 0 ? decoder.draft_ : nullptr),
        builder_(*decoder.builder_),
        recipe_(decoder.options_),
        options_(options),
        vocab_size_(target_.vocab_size()),
        prompt_length_(prompt.size()),
        text_(prompt.begin(), prompt.end()) {
    const bool greedy = options.sampling.temperature == 0.0;
    verifier_name_ = recipe_.verifier == "auto" ? auto_verifier(builder_.proposal(), greedy)
                                                : std::string_view(recipe_.verifier);
    check(greedy);
    if (decoder.planned_ != nullptr && draft_ != nullptr) {
      planned_ = decoder.planned_.get();
      rule_.emplace(recipe_.costs, budget_options());
    }
    plain_verifier_ = make_verifier(auto_verifier(Proposal::kDeterministic, greedy));
    tree_verifier_ = make_verifier(verifier_name_);
  }

  GenerateResult generate() {
    if (options_.max_new_tokens == 0) return finish(StopReason::kMaxTokens);
    {
      StepTimer timer(stats_.prefill_seconds);
      prefill();
    }
    while (!stop_) round();
    return finish(*stop_);
  }

 private:
  struct Mask {
    std::vector<int32_t> positions;
    std::vector<uint32_t> bits;
  };

  template <class Work>
  decltype(auto) timed(Step step, Work work) {
    StepTimer timer(stats_.seconds[static_cast<int>(step)]);
    return work();
  }

  /// The round. Until `commit` only the target's speculative rows have changed.
  void round() {
    plan_ = plan();
    CandidateSource* source = timed(Step::kDraft, [&] { return draft(); });
    const TokenTree tree = timed(Step::kBuild, [&] { return build(source); });
    const Mask mask = timed(Step::kMask, [&] { return make_mask(tree); });
    const RowsView logits = timed(Step::kTarget, [&] { return forward(tree, mask); });
    const Verdict verdict = timed(Step::kVerify, [&] { return verify_tree(tree, logits); });
    if (rule_) rule_->learn(tree, verdict.accepted_nodes);
    const size_t num_emitted = timed(Step::kCommit, [&] { return commit(tree, verdict); });
    deliver(num_emitted);
  }

  /// What the rule decides, else the same in every round.
  RoundPlan plan() {
    if (rule_) return rule_->plan(prefix_length() + 1, 1, useful_depth());
    if (draft_ == nullptr || useful_depth() < 1) return {};
    return {RoundKind::kTree, recipe_.node_budget, useful_depth(), 0.0, 0.0};
  }

  /// Candidates, or null when no tree is wanted.
  CandidateSource* draft() {
    if (plan_.node_budget == 0) return nullptr;
    return &draft_->draft({root_token(), key(), plan_.max_depth, plan_.node_budget,
                           options_.sampling, builder_.proposal()});
  }

  TokenTree build(CandidateSource* source) {
    if (source == nullptr) return root_tree(root_token());
    RoundSource limited(*source, plan_.max_depth, stats_);
    TokenTree tree = grow(limited);
    tree.token[0] = root_token();
    if (rule_) cut(tree);
    check_tree_fits(tree);
    return tree;
  }

  TokenTree grow(CandidateSource& source) const {
    if (planned_ == nullptr) {
      return build_tree(builder_, recipe_.builder, source, plan_.node_budget, key());
    }
    return build_tree(*planned_->at(plan_), planned_->name(plan_), source, plan_.node_budget,
                      key());
  }

  /// To the nodes that are worth their rows.
  void cut(TokenTree& tree) {
    BudgetRule* const rule = &*rule_;
    const TokenTree* const whole = &tree;
    const int32_t kept = share_budget({&rule, 1}, {&whole, 1})[0];
    if (kept + 1 < tree.num_nodes()) tree = beginning_of(tree, kept);
  }

  BudgetOptions budget_options() const {
    BudgetOptions options;
    options.max_nodes = recipe_.node_budget;
    options.max_depth = planned_->max_depth();
    options.ranked_trees = planned_->ranked();
    options.chains = suits_chains();
    options.acceptance = recipe_.acceptance;
    return options;
  }

  bool suits_chains() const {
    try {
      check_verifier(verifier_info(verifier_name_), builder_.proposal(), true, recipe_.lossy);
    } catch (const InvalidArgument&) {
      return false;
    }
    return true;
  }

  /// Before the forward: what a faulty drafter or a wrong pair would cost otherwise.
  void check_tree_fits(const TokenTree& tree) const {
    check_tokens(tree.token, vocab_size_, "SpeculativeDecoder: drafted tokens");
    TREESPEC_CHECK(tree.draft_probs.vocab_size <= vocab_size_,
                   "SpeculativeDecoder: the draft law's vocabulary must be at most the target's ",
                   vocab_size_, ", got ", tree.draft_probs.vocab_size);
    check_verifier(verifier_info(verifier_name_), tree, !tree.draft_probs.empty(), recipe_.lossy);
  }

  Mask make_mask(const TokenTree& tree) const {
    return {tree_positions(tree.depth, prefix_length()), ancestor_mask(tree.parent)};
  }

  RowsView forward(const TokenTree& tree, const Mask& mask) {
    const RowsView logits = target_.forward({tree, mask.positions, mask.bits, prefix_length()});
    check_logits(logits, tree.num_nodes(), vocab_size_, "forward");
    return logits;
  }

  Verdict verify_tree(const TokenTree& tree, const RowsView& logits) {
    const History history{text_, prompt_length_};
    LogitRows rows(logits, tree, options_.sampling, history, allowed_after(tree));
    const Verifier& verifier = tree.num_nodes() == 1 ? *plain_verifier_ : *tree_verifier_;
    return verifier.verify(tree, rows, DraftLaw(tree.draft_probs), Coins(key()));
  }

  /// Cuts the verdict where plain decoding would have stopped, keeps the rest, returns its length.
  size_t commit(const TokenTree& tree, const Verdict& verdict) {
    std::vector<int32_t> emitted;
    for (const int32_t node : verdict.accepted_nodes) emitted.push_back(tree.token[node]);
    emitted.push_back(verdict.next_token);
    const std::optional<StopReason> stop = cut(emitted);

    // The last emitted token is the next root: it has no KV row, whether or not it was drafted.
    std::vector<int32_t> nodes{0};
    for (size_t i = 0; i + 1 < emitted.size(); ++i) nodes.push_back(verdict.accepted_nodes[i]);
    const RowsView kept_states = draft_ == nullptr ? RowsView{} : gather_states(nodes, tree);
    target_.commit(nodes);
    if (draft_ != nullptr) draft_->observe(emitted, kept_states);

    text_.insert(text_.end(), emitted.begin(), emitted.end());
    stop_ = stop;
    count(tree, verdict, emitted.size());
    return emitted.size();
  }

  void prefill() {
    const RowsView logits = target_.prefill(text_);
    check_logits(logits, 1, vocab_size_, "prefill");
    const TokenTree tree = root_tree(text_.back());
    TargetRow row;
    process_logits(logits, 0, options_.sampling, {text_, prompt_length_}, {}, allowed_after(tree),
                   {}, row);
    const auto position = static_cast<uint32_t>(prompt_length_);
    std::vector<int32_t> emitted{
        sample_at_position(row, options_.seed, options_.sequence_id, position)};
    const std::optional<StopReason> stop = cut(emitted);
    if (draft_ != nullptr) {
      draft_->begin(text_, prompt_states());
      draft_->observe(emitted, {});
    }
    text_.push_back(emitted[0]);
    stop_ = stop;
    deliver(1);
  }

  /// Shortens `emitted` to where plain decoding stops; nothing if it goes on.
  std::optional<StopReason> cut(std::vector<int32_t>& emitted) {
    const size_t committed = text_.size();
    std::optional<StopReason> stop;
    for (size_t i = 0; i < emitted.size() && !stop; ++i) {
      text_.push_back(emitted[i]);
      stop = stops_after_last();
    }
    emitted.resize(text_.size() - committed);
    text_.resize(committed);
    return stop;
  }

  std::optional<StopReason> stops_after_last() const {
    const auto& stops = options_.stop_token_ids;
    if (std::find(stops.begin(), stops.end(), text_.back()) != stops.end()) {
      return StopReason::kStopToken;
    }
    const ArrayView<const int32_t> output(text_.data() + prompt_length_, output_length());
    if (options_.stop_when && options_.stop_when(output)) return StopReason::kStopCondition;
    if (output.size() >= options_.max_new_tokens) return StopReason::kMaxTokens;
    return std::nullopt;
  }

  /// Hands the last tokens to the caller, after everything is committed.
  void deliver(size_t num_tokens) {
    if (!options_.on_tokens) return;
    const auto size = static_cast<int64_t>(num_tokens);
    const ArrayView<const int32_t> fresh(text_.data() + text_.size() - num_tokens, size);
    if (!options_.on_tokens(fresh) && !stop_) stop_ = StopReason::kCancelled;
  }

  const uint32_t* allowed_after(const TokenTree& tree) {
    if (!options_.allow) return nullptr;
    allowed_.assign(static_cast<size_t>(tree.num_nodes()) * ((vocab_size_ + 31) / 32), 0);
    options_.allow(tree, text_, allowed_.data());
    return allowed_.data();
  }

  RowsView prompt_states() const {
    const RowsView states = target_.states();
    TREESPEC_CHECK(states.data == nullptr || states.num_rows == prompt_length_,
                   "TargetModel::states: rows must be ", prompt_length_, " after prefill, got ",
                   states.num_rows);
    return states;
  }

  /// Rows of the committed nodes, copied: the target may reuse its buffer in `commit`.
  RowsView gather_states(const std::vector<int32_t>& nodes, const TokenTree& tree) {
    const RowsView states = target_.states();
    if (states.data == nullptr) return {};
    TREESPEC_CHECK(states.num_rows == tree.num_nodes(), "TargetModel::states: rows must be ",
                   tree.num_nodes(), " after forward, got ", states.num_rows);
    const auto row_bytes = static_cast<size_t>(states.width * size_of(states.dtype));
    const auto stride = static_cast<size_t>(states.row_stride * size_of(states.dtype));
    states_.resize(nodes.size() * row_bytes);
    for (size_t i = 0; i < nodes.size(); ++i) {
      std::memcpy(states_.data() + i * row_bytes,
                  static_cast<const char*>(states.data) + static_cast<size_t>(nodes[i]) * stride,
                  row_bytes);
    }
    return {states_.data(), states.dtype, static_cast<int64_t>(nodes.size()), states.width,
            states.width};
  }

  void count(const TokenTree& tree, const Verdict& verdict, size_t num_emitted) {
    ++stats_.rounds;
    stats_.emitted_tokens += static_cast<int64_t>(num_emitted);
    stats_.drafted_nodes += tree.num_nodes() - 1;
    stats_.predicted_accepted += expected_acceptance(tree);
    const size_t num_accepted = std::min(num_emitted, verdict.accepted_nodes.size());
    for (size_t i = 0; i < num_accepted; ++i) {
      count_at(stats_.accepted_by_depth, i);
      count_at(stats_.accepted_by_rank, sibling_rank(tree, verdict.accepted_nodes[i]));
    }
  }

  GenerateResult finish(StopReason reason) {
    return {{text_.begin() + prompt_length_, text_.end()}, reason, std::move(stats_)};
  }

  void check(bool greedy) const {
    TREESPEC_CHECK(!text_.empty(), "generate: prompt must have at least one token, got none");
    check_tokens(text_, vocab_size_, "generate: prompt tokens");
    check_sampling(options_.sampling);
    for (const auto& [token, bias] : options_.sampling.logit_bias) {
      TREESPEC_CHECK(token < vocab_size_, "generate: logit_bias ids must be in [0, ", vocab_size_,
                     "), got ", token);
    }
    TREESPEC_CHECK(
        options_.max_new_tokens >= 0 && prompt_length_ <= INT32_MAX - options_.max_new_tokens,
        "generate: max_new_tokens must be at least 0 and below 2^31 with the prompt, got ",
        options_.max_new_tokens);
    check_context("target", target_.max_context());
    if (draft_ != nullptr) check_context("drafter", draft_->max_context());
    TREESPEC_CHECK(greedy || draft_ == nullptr || verifier_name_ != "greedy",
                   "generate: temperature must be 0 with verifier 'greedy', got ",
                   options_.sampling.temperature);
  }

  void check_context(const char* who, int32_t limit) const {
    TREESPEC_CHECK(prompt_length_ <= limit - options_.max_new_tokens,
                   "generate: prompt and max_new_tokens must fit the ", who, "'s context of ",
                   limit, " tokens, got ", prompt_length_, " + ", options_.max_new_tokens);
  }

  int32_t root_token() const { return text_.back(); }
  int64_t output_length() const { return static_cast<int64_t>(text_.size()) - prompt_length_; }
  int32_t prefix_length() const { return static_cast<int32_t>(text_.size()) - 1; }
  /// Depth beyond which nothing can be emitted: a round gives one token more than it accepts.
  int32_t useful_depth() const {
    return static_cast<int32_t>(options_.max_new_tokens - output_length()) - 1;
  }
  RoundKey key() const {
    return {options_.seed, options_.sequence_id, static_cast<uint32_t>(prefix_length())};
  }

  TargetModel& target_;
  DraftModel* draft_;
  const TreeBuilder& builder_;
  const DecoderOptions& recipe_;
  const PlannedBuilders* planned_ = nullptr;
  const GenerateOptions& options_;
  int32_t vocab_size_;
  int64_t prompt_length_;
  std::string_view verifier_name_;
  std::unique_ptr<Verifier> plain_verifier_, tree_verifier_;  // plain: trees of a root alone
  std::vector<int32_t> text_;       // prompt + output; the last token is the root
  std::optional<BudgetRule> rule_;  // with costs
  RoundPlan plan_;                  // of the running round
  std::optional<StopReason> stop_;
  std::vector<uint32_t> allowed_;
  std::vector<char> states_;
  Stats stats_;
};

SpeculativeDecoder::SpeculativeDecoder(TargetModel& target, DraftModel* draft,
                                       const DecoderOptions& options)
    : target_(&target),
      draft_(draft),
      options_(checked(options)),
      builder_(make_builder(options.builder, options.builder_options)) {
  check_models(target, draft);
  builder_->begin(options_.node_budget, INT32_MAX, {});  // refuses a budget its options do not fit
  if (options_.costs != nullptr && options_.node_budget > 0) {
    planned_ = std::make_shared<PlannedBuilders>(options.builder, options.builder_options,
                                                 options.node_budget);
    BudgetRule(options_.costs, {options_.node_budget, INT32_MAX, true, true, options_.acceptance});
  }
  if (options_.verifier == "auto") return;
  check_verifier(verifier_info(options_.verifier), builder_->proposal(), builder_->makes_chains(),
                 options_.lossy);
}

SpeculativeDecoder::SpeculativeDecoder(const SpeculativeDecoder& recipe, TargetModel& target,
                                       DraftModel* draft)
    : target_(&target),
      draft_(draft),
      options_(recipe.options_),
      builder_(recipe.builder_),
      planned_(recipe.planned_) {
  check_models(target, draft);
}

GenerateResult SpeculativeDecoder::generate(ArrayView<const int32_t> prompt,
                                            const GenerateOptions& options) const {
  return Run(*this, prompt, options).generate();
}

std::string_view stop_reason_name(StopReason reason) {
  switch (reason) {
    case StopReason::kMaxTokens:
      return "max_tokens";
    case StopReason::kStopToken:
      return "stop_token";
    case StopReason::kStopCondition:
      return "stop_condition";
    case StopReason::kCancelled:
      return "cancelled";
  }
  return "unknown";
}

}  // namespace treespec
