// SPDX-License-Identifier: Apache-2.0
// Verifier: step 5 of a round. Walks the tree, accepts a path, samples one more token.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "treespec/array_view.h"
#include "treespec/rng.h"
#include "treespec/sampling.h"
#include "treespec/token_tree.h"

namespace treespec {

/// What a round decided.
struct Verdict {
  std::vector<int32_t> accepted_nodes;  ///< node ids of the accepted path, root excluded, top down
  int32_t next_token = -1;              ///< correction or bonus token; becomes the next root
  std::vector<int32_t> tokens;          ///< what the round emits: the path's tokens and next_token

  int32_t num_accepted() const { return static_cast<int32_t>(accepted_nodes.size()); }
};

/// The target's law after each node, loaded row by row: only visited rows cost anything.
class TargetRows {
 public:
  virtual ~TargetRows() = default;
  virtual int32_t vocab_size() const = 0;
  /// The law after `node`; `without` and what `row` borrows: see TargetRow.
  virtual void load(int32_t node, ArrayView<const int32_t> without, TargetRow& row) = 0;
  /// The likeliest token after a node, lowest id among equals.
  virtual int32_t argmax(int32_t node) = 0;
};

/// Rows that are laws already, `[N, V]` float32 or float64.
class ProbabilityRows final : public TargetRows {
 public:
  /// Checks shape and dtype now; throws when a row has NaN, a negative entry or a sum off 1 by more
  /// than 1e-3.
  ProbabilityRows(const RowsView& probs, int32_t num_nodes);
  int32_t vocab_size() const override { return static_cast<int32_t>(probs_.width); }
  void load(int32_t node, ArrayView<const int32_t> without, TargetRow& row) override;
  int32_t argmax(int32_t node) override;

 private:
  RowsView probs_;
};

/// Rows of logits, processed when they are visited; penalties see the node's own path.
class LogitRows final : public TargetRows {
 public:
  /// All arguments are borrowed. `allowed`: `[N, ceil(V / 32)]` words or null.
  LogitRows(const RowsView& logits, const TokenTree& tree, const SamplingParams& params,
            const History& history, const uint32_t* allowed);
  int32_t vocab_size() const override { return static_cast<int32_t>(logits_.width); }
  void load(int32_t node, ArrayView<const int32_t> without, TargetRow& row) override;
  int32_t argmax(int32_t node) override;

 private:
  const uint32_t* allowed_after(int32_t node) const;
  ArrayView<const int32_t> path_to(int32_t node);

  RowsView logits_;
  const TokenTree& tree_;
  const SamplingParams& params_;
  History history_;
  const uint32_t* allowed_;
  std::vector<int32_t> path_;
};

/// The draft law of the first child of each node, from the tree or from a dense matrix `[N, V]`.
class DraftLaw {
 public:
  DraftLaw() = default;  ///< none
  explicit DraftLaw(const DraftRows& rows) : rows_(&rows) {}
  /// Borrowed float32 or float64 rows; only rows of nodes that drew are read, and checked then.
  explicit DraftLaw(const RowsView& probs) : probs_(probs) {}

  bool empty() const { return (rows_ == nullptr || rows_->empty()) && probs_.data == nullptr; }
  int32_t vocab_size() const;
  /// The entries of a node's row: tokens, ascending, with their probabilities (some may be 0).
  void load(int32_t node, std::vector<int32_t>& token, std::vector<double>& prob) const;

 private:
  const DraftRows* rows_ = nullptr;
  RowsView probs_;
};

/// Where a verifier's uniforms come from: the counter generator, or arrays given by a test.
class Coins {
 public:
  explicit Coins(const RoundKey& key) : key_(key) {}
  /// `accept[i][j]` tests draw j of node i, `sample[i]` draws a token at node i, `select[i][j]`
  /// decides merge j of a tournament at node i (may be null without tournaments); all in [0, 1).
  Coins(const RoundKey& key, const std::vector<std::vector<double>>* accept,
        const std::vector<double>* sample,
        const std::vector<std::vector<double>>* select = nullptr);
  double accept(int32_t node, int32_t draw) const;
  double sample(int32_t node) const;
  double select(int32_t node, int32_t merge) const;
  bool injected() const { return accept_ != nullptr; }
  const RoundKey& key() const { return key_; }

 private:
  RoundKey key_;
  const std::vector<std::vector<double>>* accept_ = nullptr;
  const std::vector<double>* sample_ = nullptr;
  const std::vector<std::vector<double>>* select_ = nullptr;
};

/// A rule that keeps the longest path the target itself could have produced. Stateless.
class Verifier {
 public:
  virtual ~Verifier() = default;
  /// Fills accepted_nodes and next_token. `draft_law` may be empty when the table says so.
  virtual Verdict verify(const TokenTree& tree, TargetRows& target_rows, const DraftLaw& draft_law,
                         const Coins& coins) const = 0;
  /// Probability over the coins that each node of this very tree is accepted, `[N]`; 1 at the root.
  virtual std::vector<double> node_probability(const TokenTree& tree, TargetRows& target_rows,
                                               const DraftLaw& draft_law) const = 0;
};

/// A row of the table of names.
struct VerifierInfo {
  std::string_view name;
  std::string_view summary;
  uint32_t proposals;    ///< bit per Proposal it is lossless on; none: it is lossy
  bool chain_only;       ///< every node has at most one draw
  bool needs_draft_law;  ///< reads the rows the tokens were drawn from
  std::unique_ptr<Verifier> (*make)();
};

constexpr uint32_t proposal_bit(Proposal proposal) { return 1u << static_cast<uint32_t>(proposal); }

ArrayView<const VerifierInfo> verifiers();
/// The row of a name; throws InvalidArgument that lists the known ones.
const VerifierInfo& verifier_info(std::string_view name);
std::unique_ptr<Verifier> make_verifier(std::string_view name);
/// What "auto" means for a tree: greedy at temperature 0, else by proposal mode.
std::string_view auto_verifier(Proposal proposal, bool greedy);

bool is_lossless(const VerifierInfo& info, Proposal proposal);
/// Whether it changes the distribution of the text on every tree; then it has to be asked for.
bool is_lossy(const VerifierInfo& info);
/// Refuses a pair that would be biased, naming the verifiers that fit. `chain`: whether no node has
/// more than one draw. For a builder, before any work; for a tree, before it is verified. `lossy`
/// admits the verifiers that are lossy by design, and nothing else.
void check_verifier(const VerifierInfo& info, Proposal proposal, bool chain, bool lossy = false);
/// The same for a tree at hand, and that the law it needs is there.
void check_verifier(const VerifierInfo& info, const TokenTree& tree, bool has_draft_law,
                    bool lossy = false);

/// What `verify` checks before it reads a row; for rows that are elsewhere. `law_vocab_size`: 0
/// without a draft law.
void check_round(std::string_view name, const TokenTree& tree, int32_t vocab_size,
                 int32_t law_vocab_size, bool lossy = false);

/// Checks the pair, verifies, and completes Verdict::tokens. `name` is not "auto".
Verdict verify(std::string_view name, const TokenTree& tree, TargetRows& target_rows,
               const DraftLaw& draft_law, const Coins& coins, bool lossy = false);

/// Probability over the coins that each node of this very tree is accepted, `[N]`, 1 at the root;
/// exact, by the closed forms of verification.md 5 and 6.3. Their sum is the expected number of
/// tokens that the round emits. Checks as `verify` does.
std::vector<double> node_probability(std::string_view name, const TokenTree& tree,
                                     TargetRows& target_rows, const DraftLaw& draft_law,
                                     bool lossy = false);

/// The largest probability, over all lossless verifiers, that one of `num_draws` children of a node
/// with target law `target` and draft law `draft`, `[V]` each, is accepted. For kIid and
/// kTopPlusOne; throws InvalidArgument for other modes. O(V log V).
/// Source: duality of the optimal transport problem, verification.md 4.1.
double alpha_star(ArrayView<const double> target, ArrayView<const double> draft, int32_t num_draws,
                  Proposal proposal);

}  // namespace treespec
