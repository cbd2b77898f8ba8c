// SPDX-License-Identifier: Apache-2.0
// TreeBuilder: step 2 of a round. Grows a TokenTree within a node budget from a CandidateSource.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "treespec/rng.h"
#include "treespec/source.h"
#include "treespec/token_tree.h"

namespace treespec {

using OptionTable = std::vector<std::vector<double>>;  // rows, of equal length or not
using OptionValue = std::variant<int64_t, double, std::string, std::vector<int64_t>, OptionTable>;
/// Builder options by name, e.g. {{"max_depth", 8}, {"proposal", "iid"}}. Each builder reads its
/// own and refuses the others with the list of those it knows.
using BuilderOptions = std::map<std::string, OptionValue, std::less<>>;

/// A tree being grown. Asks for rows (`frontier`), takes them (`supply`), so that one drafter call
/// can serve the frontiers of several sequences. Draws of purpose kDraft only.
class TreeGrowth {
 public:
  virtual ~TreeGrowth() = default;
  /// Nodes whose rows are wanted next; empty when the tree is grown. The first is [root].
  virtual ArrayView<const FrontierNode> frontier() const = 0;
  /// One row per frontier node, in order. Throws InvalidArgument on NaN or positive
  /// log-probability; the growth cannot go on then.
  virtual void supply(ArrayView<const CandidateRow> rows) = 0;
  /// The tree in pop order; root token 0. Call once, after the frontier is empty.
  virtual TokenTree finish() = 0;
};

/// A stateless recipe; one object may serve many threads.
class TreeBuilder {
 public:
  virtual ~TreeBuilder() = default;
  /// The mode of the trees this object builds.
  virtual Proposal proposal() const = 0;
  /// Whether every tree is a chain: at most one draw per node.
  virtual bool makes_chains() const { return false; }
  /// Whether it can read this kind of source.
  virtual bool accepts(SourceKind kind) const = 0;
  /// `node_budget` >= 0 counts drafted nodes; `max_depth` is the source's (or INT32_MAX).
  virtual std::unique_ptr<TreeGrowth> begin(int32_t node_budget, int32_t max_depth,
                                            const RoundKey& key) const = 0;
};

/// A row of the table of names.
struct BuilderInfo {
  std::string_view name;
  std::string_view summary;
  std::unique_ptr<TreeBuilder> (*make)(const BuilderOptions& options);
};

/// The table, in the order it is documented.
ArrayView<const BuilderInfo> builders();
/// Throws InvalidArgument for an unknown name (lists the known) or option.
std::unique_ptr<TreeBuilder> make_builder(std::string_view name,
                                          const BuilderOptions& options = {});

/// What deterministic builders with the options `score_temperature` and `calibration` see of ranked
/// lists `[num_lists, width]`: their scores in place of log-probabilities, ranked by these. Equal
/// to device::score_lists; `next` and `scored_next` may be null. A list that breaks the rules of
/// Marginals is handed on as it is, for the builder that reads it to refuse. Throws InvalidArgument
/// for `options` that are wrong or others.
void score_lists(const BuilderOptions& options, const int32_t* token, const float* logprob,
                 const int32_t* next, int64_t num_lists, int32_t width, int32_t* scored_token,
                 float* scored_logprob, int32_t* scored_next);

/// Throws InvalidArgument when the builder cannot read the source, naming the builders that can.
void check_source(const TreeBuilder& builder, std::string_view name, SourceKind kind);

/// Drives a growth over one source. Checks the source and `node_budget` >= 0 first.
TokenTree build_tree(const TreeBuilder& builder, std::string_view name, CandidateSource& source,
                     int32_t node_budget, const RoundKey& key = {});

}  // namespace treespec
