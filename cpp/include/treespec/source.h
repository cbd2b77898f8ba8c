// SPDX-License-Identifier: Apache-2.0
// CandidateSource: what a drafter hands to a tree builder. Four shapes, one interface.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "treespec/array_view.h"

namespace treespec {

/// A node whose children a builder wants to see.
struct FrontierNode {
  int32_t index;   ///< order of first hand-over in this round; the root is 0
  int32_t parent;  ///< its parent's index, -1 for the root
  int32_t token;   ///< the root's token is the caller's business: 0 unless set
  int32_t depth;   ///< 0 for the root
  int32_t state;   ///< the source's own mark, copied from the candidate this node came from
};

/// Possible children of one node.
struct CandidateRow {
  const int32_t* token = nullptr;  ///< null: candidate j is token j
  const float* logprob = nullptr;  ///< log-probability given the node; -inf is "impossible"
  const int32_t* state = nullptr;  ///< the child's FrontierNode::state; null: 0
  int32_t size = 0;
  bool ranked = false;  ///< logprob falls, equal ones by ascending token: a builder may stop early

  int32_t token_of(int32_t candidate) const {
    return token != nullptr ? token[candidate] : candidate;
  }
};

enum class SourceKind : uint8_t { kMarginals, kTransitions, kExpander, kTrie };
std::string_view source_name(SourceKind kind);

/// Gives candidate rows on demand; one thread, one growth at a time. An expander's rows stay valid
/// until its next call, those of tables (all other kinds) as long as the source.
class CandidateSource {
 public:
  virtual ~CandidateSource() = default;
  virtual SourceKind kind() const = 0;
  /// One row per node, in order. Every node's parent was handed over before.
  virtual ArrayView<const CandidateRow> rows(ArrayView<const FrontierNode> nodes) = 0;
  /// Deepest drafted node this source can give; INT32_MAX when open.
  virtual int32_t max_depth() const { return INT32_MAX; }
};

/// Rows computed by a model, `[len(nodes), V]` float32 log-probabilities over the whole vocabulary.
class Expander : public CandidateSource {
 public:
  SourceKind kind() const final { return SourceKind::kExpander; }
};

/// Candidate lists of one width, each ranked: logprob falls, equal ones by ascending token.
class RankedLists {
 public:
  /// `next` may be null. Lists 1 ... `unused` are never read. Throws InvalidArgument, in the name
  /// of `who`, for NaN, a positive log-probability, a negative or repeated token.
  RankedLists(const char* who, const int32_t* token, const float* logprob, const int32_t* next,
              int64_t num_lists, int32_t width, int64_t unused);
  /// Takes lists that are known to be ranked and sound.
  RankedLists(std::vector<int32_t> token, std::vector<float> logprob, int32_t width);
  CandidateRow row(int64_t list) const {
    const int64_t at = list * width_;
    return {token_ + at, logprob_ + at, next_ != nullptr ? next_ + at : nullptr, width_, true};
  }

 private:
  struct Copy;
  const int32_t* token_;
  const float* logprob_;
  const int32_t* next_;
  int32_t width_;
  std::shared_ptr<const Copy> copy_;  // what the pointers point to, when the input was not ranked
};

/// Depth-wise, prefix-independent lists `[D, K]` of one-pass drafters (heads, block diffusion).
class Marginals final : public CandidateSource {
 public:
  /// `token`, `logprob`: `[depth, width]`; tokens of a row distinct. A padding entry has logprob
  /// -inf. Borrowed when every list is ranked already, else copied.
  Marginals(const int32_t* token, const float* logprob, int32_t depth, int32_t width);
  /// The `width` likeliest tokens of each row of `logits` `[depth, V]`, any float dtype, under
  /// softmax(logits / temperature); see rank_candidates.
  static Marginals from_logits(const RowsView& logits, int32_t width, double temperature = 1.0);
  SourceKind kind() const override { return SourceKind::kMarginals; }
  ArrayView<const CandidateRow> rows(ArrayView<const FrontierNode> nodes) override;
  int32_t max_depth() const override { return depth_; }

 private:
  Marginals(RankedLists lists, int32_t depth) : depth_(depth), lists_(std::move(lists)) {}

  int32_t depth_;
  RankedLists lists_;
  std::vector<CandidateRow> rows_;
};

/// First-order lists `[D, R, K]`: row r of depth d lists the children of the nodes that continue
/// there; `next[d, r, k]` is the child's row at depth d + 1, -1 for a leaf. Depth 0 has row 0 only.
/// Borrowed when every list is ranked already, else copied.
class Transitions final : public CandidateSource {
 public:
  Transitions(const int32_t* token, const float* logprob, const int32_t* next, int32_t depth,
              int32_t num_rows, int32_t width);
  SourceKind kind() const override { return SourceKind::kTransitions; }
  ArrayView<const CandidateRow> rows(ArrayView<const FrontierNode> nodes) override;
  int32_t max_depth() const override { return depth_; }

 private:
  int32_t depth_, num_rows_, width_;
  RankedLists lists_;
  std::vector<CandidateRow> rows_;
};

/// The arrays of Transitions from the lists of a drafter that conditions on the token before and on
/// nothing earlier, and so computes them all at once. `token`, `logprob`
/// `[1 + (depth - 1) * num_rows, width]`: the root's list, then `num_rows` lists a depth. `owner`
/// `[depth - 1, num_rows]`: list r of depth d stands below the nodes whose token is
/// owner[d - 1, r], below none if that is negative. Writes `[depth, num_rows, width]`: of equal
/// owners the first is followed, a token that owns no list is a leaf; lists 1 ... of depth 0 are
/// padding (token 0, logprob -inf). Throws InvalidArgument for sizes below 1.
/// Source: the drafter of Rheinboldt, Berdoz, Wattenhofer, "TreeFlash: Parallel AR-Approximation
/// for Faster Speculative Decoding", 2026, arXiv 2606.03819.
void link_transitions(const int32_t* token, const float* logprob, const int32_t* owner,
                      int32_t depth, int32_t num_rows, int32_t width, int32_t* linked_token,
                      float* linked_logprob, int32_t* next);

/// Scored nodes `(parent, token, logprob)` of suffix trees, n-grams and retrieval; parents come
/// first, -1 is the root, `logprob` is conditional on the parent. Copies its input.
class Trie final : public CandidateSource {
 public:
  Trie(ArrayView<const int32_t> parent, ArrayView<const int32_t> token,
       ArrayView<const float> logprob);
  SourceKind kind() const override { return SourceKind::kTrie; }
  ArrayView<const CandidateRow> rows(ArrayView<const FrontierNode> nodes) override;
  int32_t max_depth() const override { return max_depth_; }
  int32_t num_nodes() const { return static_cast<int32_t>(token_.size()); }

 private:
  std::vector<int32_t> child_offset_;  // [nodes + 2]; children of trie node i - 1, ranked
  std::vector<int32_t> token_, id_;    // by child_offset_
  std::vector<float> logprob_;
  int32_t max_depth_ = 0;
  std::vector<CandidateRow> rows_;
};

}  // namespace treespec
