// SPDX-License-Identifier: Apache-2.0
#include "builders/sketch.h"

#include <algorithm>
#include <numeric>

namespace treespec {

void SketchGrowth::request(int32_t node) {
  const Node& n = nodes_[node];
  const int32_t parent_index = n.parent < 0 ? -1 : nodes_[n.parent].index;
  nodes_[node].index = hand_over(parent_index, n.token, n.depth, n.state);
}

int32_t SketchGrowth::add_child(int32_t node, const CandidateRow& row, int32_t entry) {
  const int32_t token = row.token_of(entry);
  const Node& parent = nodes_[node];
  Node child{token,
             node,
             parent.depth + 1,
             row.state != nullptr ? row.state[entry] : 0,
             child_score(parent.score, row.logprob[entry]),
             child_slot(parent.slot, token),
             -1,
             -1,
             {}};
  nodes_.push_back(std::move(child));
  return static_cast<int32_t>(nodes_.size()) - 1;
}

int32_t SketchGrowth::drawn_child(int32_t node, int32_t token) const {
  for (const int32_t child : nodes_[node].draws) {
    if (nodes_[child].token == token) return child;
  }
  return -1;
}

void SketchGrowth::record_law(int32_t node, const RowLaw& law) {
  law.append_to(laws_);
  nodes_[node].law = static_cast<int32_t>(laws_.row_offset.size()) - 2;
}

std::vector<int32_t> SketchGrowth::order() const {
  std::vector<int32_t> all(nodes_.size());
  std::iota(all.begin(), all.end(), 0);
  return all;
}

TokenTree SketchGrowth::assemble() {
  const std::vector<int32_t> kept = order();
  std::vector<int32_t> id_of(nodes_.size(), -1);
  for (size_t i = 0; i < kept.size(); ++i) id_of[kept[i]] = static_cast<int32_t>(i);
  TokenTree tree;
  tree.proposal = proposal_;
  tree.draft_probs = std::move(laws_);
  tree.draw_offset = {0};
  for (const int32_t i : kept) {
    const Node& node = nodes_[i];
    tree.token.push_back(node.token);
    tree.parent.push_back(node.parent < 0 ? -1 : id_of[node.parent]);
    tree.depth.push_back(node.depth);
    tree.path_logprob.push_back(node.score);
    for (const int32_t child : node.draws) {
      if (id_of[child] >= 0) tree.draw.push_back(id_of[child]);
    }
    const bool drew = tree.draw_offset.back() < static_cast<int32_t>(tree.draw.size());
    tree.draw_offset.push_back(static_cast<int32_t>(tree.draw.size()));
    // A law that nothing in the tree was drawn from is nobody's business.
    if (!tree.draft_probs.empty()) tree.draft_probs.row_of_node.push_back(drew ? node.law : -1);
  }
  return tree;
}

}  // namespace treespec
