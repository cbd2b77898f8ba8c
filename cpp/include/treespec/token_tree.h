// SPDX-License-Identifier: Apache-2.0
// TokenTree: the draft tree of one round, its proposal mode, its draws and its draft law.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "treespec/array_view.h"

namespace treespec {

/// How the drafted tokens came about. Decides which verifiers are lossless (verifier.h).
enum class Proposal : uint8_t {
  kDeterministic,       ///< a function of the context: top-k
  kIid,                 ///< K independent draws with multiplicity, K fixed before drawing
  kWithoutReplacement,  ///< ordered draws, each from the law without the tokens drawn before
  kTopPlusOne,          ///< the top k-1 and, last in the list, one draw from the rest
};

/// "deterministic", "iid", "without_replacement", "top_plus_one".
std::string_view proposal_name(Proposal proposal);
/// The inverse; throws InvalidArgument that lists the names.
Proposal parse_proposal(std::string_view name);

/// The law of the first child of each node that drew: the very numbers the tokens were drawn from.
/// Row r holds entries `[row_offset[r], row_offset[r + 1])` of `token` and `prob`; 0 elsewhere.
struct DraftRows {
  int32_t vocab_size = 0;            ///< 0: there is no law
  std::vector<int32_t> row_of_node;  ///< [N], -1: the node drew nothing
  std::vector<int64_t> row_offset;   ///< [R + 1], starts with 0
  std::vector<int32_t> token;        ///< ascending in a row, in [0, vocab_size)
  std::vector<float> prob;           ///< sums to 1 in a row, up to float rounding

  bool empty() const { return vocab_size == 0; }
};

/// One round's tree. Node 0 is the root: the last committed token, whose KV the target has not got.
/// Arrays are topological (`parent[i] < i`) in the builder's pop order; public ids, draws and coins
/// refer to that order.
struct TokenTree {
  std::vector<int32_t> token;   ///< [N]; token[0] is the root's and not checked
  std::vector<int32_t> parent;  ///< [N]; -1 for the root
  std::vector<int32_t> depth;   ///< [N]; 0 for the root; position = position of the root + depth
  std::vector<float> path_logprob;  ///< [N]; sum of draft log-probabilities from the root, 0 there
  Proposal proposal = Proposal::kDeterministic;
  std::vector<int32_t>
      draw_offset;            ///< [N + 1]; draws of node i are draw[draw_offset[i] : [i + 1]]
  std::vector<int32_t> draw;  ///< child ids in draw order; a token drawn twice repeats its id
  DraftRows draft_probs;      ///< empty for deterministic trees

  int32_t num_nodes() const { return static_cast<int32_t>(token.size()); }
  ArrayView<const int32_t> draws(int32_t node) const;
  /// Child of `node` that carries `token`, or -1. O(number of draws).
  int32_t find_child(int32_t node, int32_t token) const;
};

/// A tree of one root with nothing drafted.
TokenTree root_tree(int32_t token);

/// Completes a tree from its parents: depth; draws = children by id when `draw_offset` is empty
/// (deterministic trees only, else InvalidArgument: draw order matters). Parents out of place are
/// left for check_tree to report.
void complete_tree(TokenTree& tree);

/// The root and the first `num_drafted` nodes of a deterministic tree. Drawn trees may not be cut
/// when their draws are known: throws InvalidArgument for them, and for a number outside [0, N -
/// 1].
TokenTree beginning_of(const TokenTree& tree, int32_t num_drafted);

/// Every violated invariant in words; empty for a sound tree. Changes nothing, never throws.
std::vector<std::string> check_tree(const TokenTree& tree);

/// What is wrong with a row of a law ("must sum to 1, got 0.5"); empty if nothing is.
std::string law_row_problem(const DraftRows& rows, int32_t row);

/// Throws InvalidArgument with the first violation of topology or draws. Does not read the law's
/// probabilities, which verifiers check row by row, so that it costs nothing beside a round.
void require_sound(const char* who, const TokenTree& tree);

/// Expected accepted length by the draft's own scores: sum over drafted nodes of exp(path_logprob).
/// Source: OPT-Tree (Wang et al., 2024, arXiv 2406.17276), section 3.1.
double expected_acceptance(const TokenTree& tree);

/// Depth of the deepest node; 0 for a root alone.
int32_t max_depth(const TokenTree& tree);

}  // namespace treespec
