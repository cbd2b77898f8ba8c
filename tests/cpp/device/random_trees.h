// SPDX-License-Identifier: Apache-2.0
// Batches of random trees on the host and on the device under test.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "device/device_memory.h"
#include "treespec/device/trees.h"
#include "treespec/token_tree.h"

namespace treespec::test {

/// A deterministic tree in one of the shapes that stress an algorithm: 0 any parents, 1 a chain,
/// 2 a star, 3 parents among the last few nodes. Siblings get distinct tokens.
inline TokenTree random_tree(std::mt19937& random, int32_t num_nodes, int shape) {
  TokenTree tree = root_tree(7);
  std::vector<int32_t> num_children(static_cast<size_t>(num_nodes), 0);
  for (int32_t i = 1; i < num_nodes; ++i) {
    const int32_t lowest = shape == 1 ? i - 1 : shape == 3 ? std::max(0, i - 5) : 0;
    const int32_t highest = shape == 2 ? 0 : i - 1;
    const auto choices = static_cast<uint32_t>(highest - lowest + 1);
    const int32_t parent = lowest + static_cast<int32_t>(random() % choices);
    tree.parent.push_back(parent);
    tree.token.push_back(num_children[parent]++);
    tree.path_logprob.push_back(tree.path_logprob[parent] - 1.0f);
  }
  tree.depth.clear();
  tree.draw_offset.clear();
  tree.draw.clear();
  complete_tree(tree);
  return tree;
}

/// Trees of a batch in device memory, padded as device::Trees asks.
class DeviceTrees {
 public:
  DeviceTrees(const std::vector<TokenTree>& trees, int32_t max_nodes)
      : max_nodes_(max_nodes),
        num_nodes_(counts(trees)),
        token_(padded(trees, &TokenTree::token, 0)),
        parent_(padded(trees, &TokenTree::parent, -1)),
        depth_(padded(trees, &TokenTree::depth, 0)),
        path_logprob_(padded(trees, &TokenTree::path_logprob, 0.0f)),
        max_draws_(most_draws(trees)),
        draw_offset_(padded_draw_offsets(trees)),
        draw_(padded_draws(trees)) {}

  device::Trees view() const {
    return {static_cast<int32_t>(num_nodes_.size()),
            max_nodes_,
            max_draws_,
            num_nodes_.data(),
            token_.data(),
            parent_.data(),
            depth_.data(),
            path_logprob_.data(),
            draw_offset_.data(),
            draw_.data()};
  }

 private:
  static std::vector<int32_t> counts(const std::vector<TokenTree>& trees) {
    std::vector<int32_t> out;
    for (const TokenTree& tree : trees) out.push_back(tree.num_nodes());
    return out;
  }
  template <class T>
  std::vector<T> padded(const std::vector<TokenTree>& trees, std::vector<T> TokenTree::* field,
                        T padding) const {
    std::vector<T> out;
    for (const TokenTree& tree : trees) {
      const std::vector<T>& values = tree.*field;
      out.insert(out.end(), values.begin(), values.end());
      out.resize(out.size() + static_cast<size_t>(max_nodes_) - values.size(), padding);
    }
    return out;
  }
  static int32_t most_draws(const std::vector<TokenTree>& trees) {
    size_t most = 1;
    for (const TokenTree& tree : trees) most = std::max(most, tree.draw.size());
    return static_cast<int32_t>(most);
  }
  std::vector<int32_t> padded_draw_offsets(const std::vector<TokenTree>& trees) const {
    std::vector<int32_t> out;
    for (const TokenTree& tree : trees) {
      out.insert(out.end(), tree.draw_offset.begin(), tree.draw_offset.end());
      const size_t padding = static_cast<size_t>(max_nodes_) + 1 - tree.draw_offset.size();
      out.resize(out.size() + padding, tree.draw_offset.back());
    }
    return out;
  }
  std::vector<int32_t> padded_draws(const std::vector<TokenTree>& trees) const {
    std::vector<int32_t> out;
    for (const TokenTree& tree : trees) {
      out.insert(out.end(), tree.draw.begin(), tree.draw.end());
      out.resize(out.size() + static_cast<size_t>(max_draws_) - tree.draw.size(), 0);
    }
    return out;
  }

  int32_t max_nodes_;
  DeviceArray<int32_t> num_nodes_, token_, parent_, depth_;
  DeviceArray<float> path_logprob_;
  int32_t max_draws_;
  DeviceArray<int32_t> draw_offset_, draw_;
};

}  // namespace treespec::test
