// SPDX-License-Identifier: Apache-2.0
#include "treespec/token_tree.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "row_ops.h"
#include "shared/fixed_point.hd.h"
#include "shared/math.hd.h"
#include "treespec/error.h"

namespace treespec {
namespace {

constexpr std::array<std::string_view, 4> kProposalNames = {"deterministic", "iid",
                                                            "without_replacement", "top_plus_one"};

/// Collects violations; stops a rule at its first so that a broken tree gives a readable list.
class Violations {
 public:
  template <class... Parts>
  void add(const Parts&... parts) {
    list_.push_back(detail::message(parts...));
  }
  std::vector<std::string> take() { return std::move(list_); }
  bool none() const { return list_.empty(); }

 private:
  std::vector<std::string> list_;
};

void check_arrays(const TokenTree& tree, Violations& bad) {
  const size_t n = tree.token.size();
  if (n == 0) bad.add("token must have at least the root, got 0 nodes");
  if (tree.parent.size() != n) bad.add("parent must be [", n, "], got [", tree.parent.size(), "]");
  if (tree.depth.size() != n) bad.add("depth must be [", n, "], got [", tree.depth.size(), "]");
  if (tree.path_logprob.size() != n) {
    bad.add("path_logprob must be [", n, "], got [", tree.path_logprob.size(), "]");
  }
  if (tree.draw_offset.size() != n + 1) {
    bad.add("draw_offset must be [", n + 1, "], got [", tree.draw_offset.size(), "]");
  }
}

void check_topology(const TokenTree& tree, Violations& bad) {
  if (tree.parent[0] != -1) bad.add("parent[0] must be -1, got ", tree.parent[0]);
  if (tree.depth[0] != 0) bad.add("depth[0] must be 0, got ", tree.depth[0]);
  for (int32_t i = 1; i < tree.num_nodes(); ++i) {
    const int32_t parent = tree.parent[i];
    if (parent < 0 || parent >= i) {
      bad.add("parent[", i, "] must be in [0, ", i, "), got ", parent);
    } else if (tree.depth[i] != tree.depth[parent] + 1) {
      bad.add("depth[", i, "] must be ", tree.depth[parent] + 1, ", got ", tree.depth[i]);
    }
    if (tree.token[i] < 0) bad.add("token[", i, "] must be >= 0, got ", tree.token[i]);
  }
}

void check_scores(const TokenTree& tree, Violations& bad) {
  for (int32_t i = 0; i < tree.num_nodes(); ++i) {
    if (std::isnan(tree.path_logprob[i])) bad.add("path_logprob[", i, "] must not be NaN");
  }
}

/// Offsets ascend, draws name children of their node, every child is drawn.
void check_draws(const TokenTree& tree, Violations& bad) {
  const int32_t n = tree.num_nodes();
  if (tree.draw_offset[0] != 0 || tree.draw_offset[n] != static_cast<int32_t>(tree.draw.size()) ||
      !std::is_sorted(tree.draw_offset.begin(), tree.draw_offset.end())) {
    bad.add("draw_offset must ascend from 0 to ", tree.draw.size());
    return;
  }
  std::vector<int32_t> times_drawn(static_cast<size_t>(n), 0);
  for (int32_t i = 0; i < n; ++i) {
    for (const int32_t child : tree.draws(i)) {
      if (child <= 0 || child >= n || tree.parent[child] != i) {
        bad.add("draws[", i, "] must name children of node ", i, ", got ", child);
      } else if (++times_drawn[child] > 1 && tree.proposal != Proposal::kIid) {
        bad.add("draws[", i, "] must not repeat node ", child, " in a ",
                proposal_name(tree.proposal), " tree");
      }
    }
  }
  for (int32_t i = 1; i < n; ++i) {
    if (times_drawn[i] == 0) bad.add("node ", i, " must be among the draws of its parent");
  }
}

void check_siblings(const TokenTree& tree, Violations& bad) {
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < tree.num_nodes(); ++i) {
    std::vector<int32_t> children(tree.draws(i).begin(), tree.draws(i).end());
    std::sort(children.begin(), children.end());
    children.erase(std::unique(children.begin(), children.end()), children.end());
    tokens.clear();
    for (const int32_t child : children) tokens.push_back(tree.token[child]);
    std::sort(tokens.begin(), tokens.end());
    const auto twin = std::adjacent_find(tokens.begin(), tokens.end());
    if (twin != tokens.end()) {
      bad.add("children of node ", i, " must have distinct tokens, got ", *twin, " twice");
    }
  }
}

/// Rows partition the entries.
bool rows_fit(const DraftRows& rows) {
  return !rows.row_offset.empty() && rows.row_offset.front() == 0 &&
         rows.row_offset.back() == static_cast<int64_t>(rows.prob.size()) &&
         rows.token.size() == rows.prob.size() &&
         std::is_sorted(rows.row_offset.begin(), rows.row_offset.end());
}

/// Every node that drew has a row.
void check_law_rows(const TokenTree& tree, Violations& bad) {
  const DraftRows& rows = tree.draft_probs;
  if (rows.empty()) return;
  if (!rows_fit(rows)) {
    bad.add("draft_probs row_offset must ascend from 0 to the number of tokens and of prob");
    return;
  }
  if (rows.row_of_node.size() != tree.token.size()) {
    bad.add("draft_probs must have a row index per node, got ", rows.row_of_node.size());
    return;
  }
  const int64_t num_rows = static_cast<int64_t>(rows.row_offset.size()) - 1;
  for (int32_t i = 0; i < tree.num_nodes(); ++i) {
    const int32_t row = rows.row_of_node[i];
    if (row < -1 || row >= num_rows) {
      bad.add("draft_probs row of node ", i, " must be in [-1, ", num_rows, "), got ", row);
    } else if (row == -1 && !tree.draws(i).empty()) {
      bad.add("node ", i, " must have a draft_probs row, it has draws");
    }
  }
}

void check_law_values(const TokenTree& tree, Violations& bad) {
  const DraftRows& rows = tree.draft_probs;
  for (size_t r = 0; r + 1 < rows.row_offset.size(); ++r) {
    const std::string problem = law_row_problem(rows, static_cast<int32_t>(r));
    if (!problem.empty()) bad.add("draft_probs row ", r, " ", problem);
  }
}

/// What was drawn could have been drawn.
void check_drawn(const TokenTree& tree, Violations& bad) {
  const DraftRows& rows = tree.draft_probs;
  if (rows.empty()) return;
  for (int32_t i = 0; i < tree.num_nodes(); ++i) {
    for (const int32_t child : tree.draws(i)) {
      const int32_t row = rows.row_of_node[i];
      const auto begin = rows.token.begin() + rows.row_offset[row];
      const auto end = rows.token.begin() + rows.row_offset[row + 1];
      const auto at = std::lower_bound(begin, end, tree.token[child]);
      if (at == end || *at != tree.token[child] || !(rows.prob[at - rows.token.begin()] > 0.0f)) {
        bad.add("node ", child, " must carry a token of positive draft probability, got token ",
                tree.token[child]);
      }
    }
  }
}

/// Everything but the law's numbers; each rule relies on those before it.
void check_structure(const TokenTree& tree, Violations& bad) {
  check_arrays(tree, bad);
  if (bad.none()) check_topology(tree, bad);
  if (bad.none()) check_scores(tree, bad);
  if (bad.none()) check_draws(tree, bad);
  if (bad.none()) check_siblings(tree, bad);
  if (bad.none()) check_law_rows(tree, bad);
}

}  // namespace

std::string_view proposal_name(Proposal proposal) {
  return kProposalNames[static_cast<size_t>(proposal)];
}

Proposal parse_proposal(std::string_view name) {
  for (size_t i = 0; i < kProposalNames.size(); ++i) {
    if (kProposalNames[i] == name) return static_cast<Proposal>(i);
  }
  throw InvalidArgument(detail::message(
      "proposal must be one of deterministic, iid, without_replacement, top_plus_one, got \"", name,
      "\""));
}

ArrayView<const int32_t> TokenTree::draws(int32_t node) const {
  const int32_t begin = draw_offset[node];
  return {draw.data() + begin, draw_offset[node + 1] - begin};
}

int32_t TokenTree::find_child(int32_t node, int32_t wanted) const {
  for (const int32_t child : draws(node)) {
    if (token[child] == wanted) return child;
  }
  return -1;
}

TokenTree root_tree(int32_t token) {
  TokenTree tree;
  tree.token = {token};
  tree.parent = {-1};
  tree.depth = {0};
  tree.path_logprob = {0.0f};
  tree.draw_offset = {0, 0};
  return tree;
}

void complete_tree(TokenTree& tree) {
  const size_t n = tree.token.size();
  TREESPEC_CHECK(n > 0, "TokenTree: token must hold the root at least, got 0 nodes");
  TREESPEC_CHECK(tree.parent.size() == n, "TokenTree: parent must be [", n, "] for ", n,
                 " tokens, got [", tree.parent.size(), "]");
  const auto in_place = [&](size_t i) {
    return tree.parent[i] >= 0 && tree.parent[i] < static_cast<int32_t>(i);
  };
  tree.depth.assign(n, 0);
  for (size_t i = 1; i < n; ++i) {
    if (in_place(i)) tree.depth[i] = tree.depth[tree.parent[i]] + 1;
  }
  if (tree.path_logprob.empty()) tree.path_logprob.assign(n, 0.0f);
  if (!tree.draw_offset.empty()) return;
  TREESPEC_CHECK(tree.proposal == Proposal::kDeterministic || n == 1,
                 "TokenTree: draws must be given for a ", proposal_name(tree.proposal),
                 " tree (their order matters), got none");
  tree.draw_offset.assign(n + 1, 0);
  for (size_t i = 1; i < n; ++i) tree.draw_offset[in_place(i) ? tree.parent[i] + 1 : 1] += 1;
  for (size_t i = 0; i < n; ++i) tree.draw_offset[i + 1] += tree.draw_offset[i];
  std::vector<int32_t> next(tree.draw_offset.begin(), tree.draw_offset.end() - 1);
  tree.draw.resize(n - 1);
  for (size_t i = 1; i < n; ++i) {
    tree.draw[next[in_place(i) ? tree.parent[i] : 0]++] = static_cast<int32_t>(i);
  }
}

TokenTree beginning_of(const TokenTree& tree, int32_t num_drafted) {
  TREESPEC_CHECK(tree.proposal == Proposal::kDeterministic,
                 "beginning_of: tree must be deterministic, got ", proposal_name(tree.proposal));
  TREESPEC_CHECK(num_drafted >= 0 && num_drafted < tree.num_nodes(),
                 "beginning_of: num_drafted must be in [0, ", tree.num_nodes() - 1, "], got ",
                 num_drafted);
  const auto first = [size = num_drafted + 1](const auto& values) {
    return std::decay_t<decltype(values)>(values.begin(), values.begin() + size);
  };
  TokenTree out;
  out.token = first(tree.token);
  out.parent = first(tree.parent);
  out.path_logprob = first(tree.path_logprob);
  complete_tree(out);
  return out;
}

std::vector<std::string> check_tree(const TokenTree& tree) {
  Violations bad;
  check_structure(tree, bad);
  if (bad.none()) check_law_values(tree, bad);
  if (bad.none()) check_drawn(tree, bad);
  return bad.take();
}

std::string law_row_problem(const DraftRows& rows, int32_t row) {
  double sum = 0.0;
  int32_t previous = -1;
  for (int64_t e = rows.row_offset[row]; e < rows.row_offset[row + 1]; ++e) {
    if (rows.token[e] <= previous || rows.token[e] >= rows.vocab_size) {
      return detail::message("must have ascending tokens below ", rows.vocab_size, ", got ",
                             rows.token[e], " after ", previous);
    }
    if (!(rows.prob[e] >= 0.0f)) return "must not contain NaN or negative entries";
    previous = rows.token[e];
    sum += rows.prob[e];
  }
  if (std::abs(sum - 1.0) <= 1e-3) return {};
  return detail::message("must sum to 1 within 0.001, got ", sum);
}

void require_sound(const char* who, const TokenTree& tree) {
  Violations bad;
  check_structure(tree, bad);
  TREESPEC_CHECK(bad.none(), who, ": tree must be sound, got: ", bad.take().front());
}

double expected_acceptance(const TokenTree& tree) {
  uint64_t total = 0;  // raw scale: up to 2^19 nodes of probability 1
  for (int32_t i = 1; i < tree.num_nodes(); ++i) {
    const double score = tree.path_logprob[i];
    total += static_cast<uint64_t>(
        shared::to_raw_fixed(shared::exp_nonpositive(score < 0.0 ? score : 0.0)));
  }
  return shared::from_raw_fixed(total);
}

int32_t max_depth(const TokenTree& tree) {
  return tree.depth.empty() ? 0 : *std::max_element(tree.depth.begin(), tree.depth.end());
}

}  // namespace treespec
