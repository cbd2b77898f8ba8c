// SPDX-License-Identifier: Apache-2.0
#include "treespec/source.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <numeric>

#include "treespec/error.h"

namespace treespec {
namespace {

constexpr CandidateRow kNoChildren{};

/// Tokens of a list are distinct and >= 0; padding (logprob -inf) is exempt. Returns whether the
/// list descends.
bool check_list(const char* who, const int32_t* token, const float* logprob, int32_t width,
                int32_t depth) {
  std::vector<int32_t> seen;
  for (int32_t k = 0; k < width; ++k) {
    TREESPEC_CHECK(!std::isnan(logprob[k]) && logprob[k] <= 1e-3f, who,
                   ": logprob must be <= 0 and not NaN, got ", logprob[k], " at depth ", depth);
    if (std::isinf(logprob[k])) continue;
    TREESPEC_CHECK(token[k] >= 0, who, ": token must be >= 0, got ", token[k], " at depth ", depth);
    seen.push_back(token[k]);
  }
  std::sort(seen.begin(), seen.end());
  const auto twin = std::adjacent_find(seen.begin(), seen.end());
  TREESPEC_CHECK(twin == seen.end(), who, ": tokens of a list must be distinct, got ", *twin,
                 " twice at depth ", depth);
  return std::is_sorted(logprob, logprob + width, std::greater<>());
}

}  // namespace

std::string_view source_name(SourceKind kind) {
  constexpr std::array<std::string_view, 4> kNames = {"Marginals", "Transitions", "Expander",
                                                      "Trie"};
  return kNames[static_cast<size_t>(kind)];
}

Marginals::Marginals(const int32_t* token, const float* logprob, int32_t depth, int32_t width)
    : token_(token), logprob_(logprob), depth_(depth), width_(width) {
  TREESPEC_CHECK(depth >= 0 && width >= 1, "Marginals: shape must be [D >= 0, K >= 1], got [",
                 depth, ", ", width, "]");
  for (int32_t d = 0; d < depth; ++d) {
    descending_.push_back(check_list("Marginals", token + int64_t{d} * width,
                                     logprob + int64_t{d} * width, width, d));
  }
}

ArrayView<const CandidateRow> Marginals::rows(ArrayView<const FrontierNode> nodes) {
  rows_.clear();
  for (const FrontierNode& node : nodes) {
    const int64_t at = int64_t{node.depth} * width_;
    rows_.push_back(node.depth < depth_ ? CandidateRow{token_ + at, logprob_ + at, nullptr, width_,
                                                       descending_[node.depth] != 0}
                                        : kNoChildren);
  }
  return rows_;
}

Transitions::Transitions(const int32_t* token, const float* logprob, const int32_t* next,
                         int32_t depth, int32_t num_rows, int32_t width)
    : token_(token),
      logprob_(logprob),
      next_(next),
      depth_(depth),
      num_rows_(num_rows),
      width_(width) {
  TREESPEC_CHECK(depth >= 0 && num_rows >= 1 && width >= 1,
                 "Transitions: shape must be [D >= 0, R >= 1, K >= 1], got [", depth, ", ",
                 num_rows, ", ", width, "]");
  for (int64_t list = 0; list < int64_t{depth} * num_rows; ++list) {
    const auto d = static_cast<int32_t>(list / num_rows);
    descending_.push_back(0);
    if (d == 0 && list % num_rows != 0) continue;  // depth 0 uses row 0 only
    descending_.back() =
        check_list("Transitions", token + list * width, logprob + list * width, width, d);
    for (int64_t k = list * width; k < (list + 1) * width; ++k) {
      TREESPEC_CHECK(next[k] >= -1 && next[k] < num_rows, "Transitions: next must be in [-1, ",
                     num_rows, "), got ", next[k], " at depth ", d);
    }
  }
}

ArrayView<const CandidateRow> Transitions::rows(ArrayView<const FrontierNode> nodes) {
  rows_.clear();
  for (const FrontierNode& node : nodes) {
    const int32_t row = node.depth == 0 ? 0 : node.state;
    const int64_t list = int64_t{node.depth} * num_rows_ + row;
    const int64_t at = list * width_;
    rows_.push_back(
        node.depth < depth_ && row >= 0
            ? CandidateRow{token_ + at, logprob_ + at, next_ + at, width_, descending_[list] != 0}
            : kNoChildren);
  }
  return rows_;
}

Trie::Trie(ArrayView<const int32_t> parent, ArrayView<const int32_t> token,
           ArrayView<const float> logprob) {
  const int64_t n = parent.size();
  TREESPEC_CHECK(token.size() == n && logprob.size() == n,
                 "Trie: parent, token and logprob must have one length, got ", n, ", ",
                 token.size(), " and ", logprob.size());
  std::vector<int32_t> depth(static_cast<size_t>(n));
  child_offset_.assign(static_cast<size_t>(n) + 2, 0);
  for (int64_t i = 0; i < n; ++i) {
    TREESPEC_CHECK(parent[i] >= -1 && parent[i] < i, "Trie: parent[", i, "] must be in [-1, ", i,
                   "), got ", parent[i]);
    TREESPEC_CHECK(token[i] >= 0, "Trie: token[", i, "] must be >= 0, got ", token[i]);
    TREESPEC_CHECK(!std::isnan(logprob[i]) && logprob[i] <= 1e-3f, "Trie: logprob[", i,
                   "] must be <= 0 and not NaN, got ", logprob[i]);
    depth[i] = parent[i] < 0 ? 1 : depth[parent[i]] + 1;
    max_depth_ = std::max(max_depth_, depth[i]);
    ++child_offset_[parent[i] + 2];
  }
  std::partial_sum(child_offset_.begin(), child_offset_.end(), child_offset_.begin());
  id_.resize(static_cast<size_t>(n));
  std::iota(id_.begin(), id_.end(), 0);
  std::sort(id_.begin(), id_.end(), [&](int32_t a, int32_t b) {
    return parent[a] != parent[b] ? parent[a] < parent[b] : token[a] < token[b];
  });
  for (const int32_t i : id_) {
    TREESPEC_CHECK(
        token_.empty() || parent[i] != parent[id_[token_.size() - 1]] || token[i] != token_.back(),
        "Trie: siblings must have distinct tokens, got ", token[i], " twice under ", parent[i]);
    token_.push_back(token[i]);
    logprob_.push_back(logprob[i]);
  }
}

ArrayView<const CandidateRow> Trie::rows(ArrayView<const FrontierNode> nodes) {
  rows_.clear();
  for (const FrontierNode& node : nodes) {
    const int32_t slot = node.depth == 0 ? 0 : node.state + 1;
    const int32_t begin = child_offset_[slot];
    rows_.push_back({token_.data() + begin, logprob_.data() + begin, id_.data() + begin,
                     child_offset_[slot + 1] - begin, false});
  }
  return rows_;
}

}  // namespace treespec
