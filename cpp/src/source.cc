// SPDX-License-Identifier: Apache-2.0
#include "treespec/source.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>

#include "treespec/candidates.h"
#include "treespec/error.h"

namespace treespec {
namespace {

constexpr CandidateRow kNoChildren{};

/// Whether candidate b may follow candidate a in a ranked list.
bool in_rank_order(float logprob_a, int32_t token_a, float logprob_b, int32_t token_b) {
  return logprob_a != logprob_b ? logprob_a > logprob_b : token_a < token_b;
}

/// Tokens of a list are distinct and >= 0; padding (logprob -inf) is exempt.
void check_list(const char* who, const int32_t* token, const float* logprob, int32_t width,
                int64_t list) {
  std::vector<int32_t> seen;
  for (int32_t k = 0; k < width; ++k) {
    TREESPEC_CHECK(!std::isnan(logprob[k]) && logprob[k] <= 1e-3f, who,
                   ": logprob must be <= 0 and not NaN, got ", logprob[k], " in list ", list);
    if (std::isinf(logprob[k])) continue;
    TREESPEC_CHECK(token[k] >= 0 && token[k] < INT32_MAX, who,
                   ": token must be in [0, 2^31 - 1), got ", token[k], " in list ", list);
    seen.push_back(token[k]);
  }
  std::sort(seen.begin(), seen.end());
  const auto twin = std::adjacent_find(seen.begin(), seen.end());
  TREESPEC_CHECK(twin == seen.end(), who, ": tokens of a list must be distinct, got ", *twin,
                 " twice in list ", list);
}

bool is_ranked(const int32_t* token, const float* logprob, int32_t width) {
  for (int32_t k = 1; k < width && !std::isinf(logprob[k]); ++k) {
    if (!in_rank_order(logprob[k - 1], token[k - 1], logprob[k], token[k])) return false;
  }
  return std::is_sorted(logprob, logprob + width, std::greater<>());  // padding comes last
}

}  // namespace

std::string_view source_name(SourceKind kind) {
  constexpr std::array<std::string_view, 4> kNames = {"Marginals", "Transitions", "Expander",
                                                      "Trie"};
  return kNames[static_cast<size_t>(kind)];
}

struct RankedLists::Copy {
  std::vector<int32_t> token, next;
  std::vector<float> logprob;
};

RankedLists::RankedLists(const char* who, const int32_t* token, const float* logprob,
                         const int32_t* next, int64_t num_lists, int32_t width, int64_t unused)
    : token_(token), logprob_(logprob), next_(next), width_(width) {
  TREESPEC_CHECK(num_lists >= 0 && width >= 1, who,
                 ": shape must have no negative size and K >= 1, got ", num_lists, " lists of ",
                 width);
  bool ranked = true;
  for (int64_t list = 0; list < num_lists; ++list) {
    if (list >= 1 && list <= unused) continue;
    check_list(who, token + list * width, logprob + list * width, width, list);
    ranked = ranked && is_ranked(token + list * width, logprob + list * width, width);
  }
  if (ranked) return;
  const auto copy = std::make_shared<Copy>();
  std::vector<int64_t> place(static_cast<size_t>(width));
  for (int64_t list = 0; list < num_lists; ++list) {
    std::iota(place.begin(), place.end(), list * width);
    const bool read = list < 1 || list > unused;  // the others may hold anything
    if (read) {
      std::sort(place.begin(), place.end(), [&](int64_t a, int64_t b) {
        return in_rank_order(logprob[a], token[a], logprob[b], token[b]);
      });
    }
    for (const int64_t at : place) {
      copy->token.push_back(token[at]);
      copy->logprob.push_back(logprob[at]);
      if (next != nullptr) copy->next.push_back(next[at]);
    }
  }
  token_ = copy->token.data();
  logprob_ = copy->logprob.data();
  if (next != nullptr) next_ = copy->next.data();
  copy_ = copy;
}

RankedLists::RankedLists(std::vector<int32_t> token, std::vector<float> logprob, int32_t width)
    : next_(nullptr), width_(width) {
  const auto copy = std::make_shared<Copy>();
  copy->token = std::move(token);
  copy->logprob = std::move(logprob);
  token_ = copy->token.data();
  logprob_ = copy->logprob.data();
  copy_ = copy;
}

Marginals::Marginals(const int32_t* token, const float* logprob, int32_t depth, int32_t width)
    : depth_(depth), lists_("Marginals", token, logprob, nullptr, depth, width, 0) {}

Marginals Marginals::from_logits(const RowsView& logits, int32_t width, double temperature) {
  TREESPEC_CHECK(width >= 1, "Marginals: width must be >= 1, got ", width);
  TREESPEC_CHECK(logits.num_rows <= INT32_MAX, "Marginals: rows must be fewer than 2^31, got ",
                 logits.num_rows);
  width = static_cast<int32_t>(std::min<int64_t>(width, std::max<int64_t>(logits.width, 1)));
  const auto size = static_cast<size_t>(logits.num_rows * width);
  std::vector<int32_t> token(size);
  std::vector<float> logprob(size);
  rank_candidates(logits, width, temperature, token.data(), logprob.data());
  return {RankedLists(std::move(token), std::move(logprob), width),
          static_cast<int32_t>(logits.num_rows)};
}

ArrayView<const CandidateRow> Marginals::rows(ArrayView<const FrontierNode> nodes) {
  rows_.clear();
  for (const FrontierNode& node : nodes) {
    rows_.push_back(node.depth < depth_ ? lists_.row(node.depth) : kNoChildren);
  }
  return rows_;
}

Transitions::Transitions(const int32_t* token, const float* logprob, const int32_t* next,
                         int32_t depth, int32_t num_rows, int32_t width)
    : depth_(depth),
      num_rows_(num_rows),
      // Depth 0 uses row 0 only.
      lists_("Transitions", token, logprob, next, int64_t{depth} * num_rows, width, num_rows - 1) {
  TREESPEC_CHECK(num_rows >= 1, "Transitions: num_rows must be >= 1, got ", num_rows);
  for (int64_t list = 0; list < int64_t{depth} * num_rows; ++list) {
    if (list >= 1 && list < num_rows) continue;
    for (int64_t k = list * width; k < (list + 1) * width; ++k) {
      TREESPEC_CHECK(next[k] >= -1 && next[k] < num_rows, "Transitions: next must be in [-1, ",
                     num_rows, "), got ", next[k], " at depth ", list / num_rows);
    }
  }
}

ArrayView<const CandidateRow> Transitions::rows(ArrayView<const FrontierNode> nodes) {
  rows_.clear();
  for (const FrontierNode& node : nodes) {
    const int32_t row = node.depth == 0 ? 0 : node.state;
    const bool inside = node.depth < depth_ && row >= 0;
    rows_.push_back(inside ? lists_.row(int64_t{node.depth} * num_rows_ + row) : kNoChildren);
  }
  return rows_;
}

void link_transitions(const int32_t* token, const float* logprob, const int32_t* owner,
                      int32_t depth, int32_t num_rows, int32_t width, int32_t* linked_token,
                      float* linked_logprob, int32_t* next) {
  TREESPEC_CHECK(depth >= 1, "Transitions: depth must be >= 1, got ", depth);
  TREESPEC_CHECK(num_rows >= 1, "Transitions: num_rows must be >= 1, got ", num_rows);
  TREESPEC_CHECK(width >= 1, "Transitions: width must be >= 1, got ", width);
  const int64_t entries = int64_t{num_rows} * width;
  std::fill_n(linked_token, entries, 0);
  std::fill_n(linked_logprob, entries, -std::numeric_limits<float>::infinity());
  std::copy_n(token, width, linked_token);
  std::copy_n(logprob, width, linked_logprob);
  std::copy_n(token + width, (depth - 1) * entries, linked_token + entries);
  std::copy_n(logprob + width, (depth - 1) * entries, linked_logprob + entries);
  std::fill_n(next, depth * entries, -1);
  std::vector<std::pair<int32_t, int32_t>> rows;  // (owner, row) of a depth
  for (int32_t d = 0; d + 1 < depth; ++d) {
    rows.clear();
    for (int32_t r = 0; r < num_rows; ++r) {
      const int32_t by = owner[int64_t{d} * num_rows + r];
      if (by >= 0) rows.emplace_back(by, r);
    }
    std::sort(rows.begin(), rows.end());
    const int64_t size = d == 0 ? width : entries;
    for (int64_t i = d * entries; i < d * entries + size; ++i) {
      const int32_t by = linked_token[i];
      const auto first = std::lower_bound(rows.begin(), rows.end(), std::pair(by, 0));
      if (first != rows.end() && first->first == by) next[i] = first->second;
    }
  }
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
    TREESPEC_CHECK(token[i] >= 0 && token[i] < INT32_MAX, "Trie: token[", i,
                   "] must be in [0, 2^31 - 1), got ", token[i]);
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
  const auto twin = std::adjacent_find(id_.begin(), id_.end(), [&](int32_t a, int32_t b) {
    return parent[a] == parent[b] && token[a] == token[b];
  });
  TREESPEC_CHECK(twin == id_.end(), "Trie: siblings must have distinct tokens, got ", token[*twin],
                 " twice under ", parent[*twin]);
  std::sort(id_.begin(), id_.end(), [&](int32_t a, int32_t b) {
    return parent[a] != parent[b] ? parent[a] < parent[b]
                                  : in_rank_order(logprob[a], token[a], logprob[b], token[b]);
  });
  for (const int32_t i : id_) {
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
                     child_offset_[slot + 1] - begin, true});
  }
  return rows_;
}

}  // namespace treespec
