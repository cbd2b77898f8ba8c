// SPDX-License-Identifier: Apache-2.0
#include <simt.cuh>

#include "checks.h"
#include "tree.cuh"
#include "treespec/device/tree_mask.h"

namespace treespec::device {
namespace {

/// Word `word` of the ancestor bits of `node`. Ids descend on the way to the root, so that the walk
/// ends below the word.
TREESPEC_DEVICE uint32_t ancestor_word(const int32_t* parent, int32_t node, int32_t word) {
  uint32_t bits = 0;
  for (int32_t j = node; j >= word * 32; j = parent[j]) {
    if (j / 32 == word) bits |= 1u << j % 32;
  }
  return bits;
}

/// Bit k: element k of the four is `value`.
TREESPEC_DEVICE uint32_t equal_bits(const simt::Words4& four, int32_t value) {
  uint32_t bits = 0;
  for (int k = 0; k < 4; ++k) bits |= (four.word[k] == static_cast<uint32_t>(value) ? 1u : 0u) << k;
  return bits;
}

struct Links {
  int32_t first_child;
  int32_t next_sibling;
};

/// Lowest child of `node`, and the lowest higher node with its parent. `parent` is 16-byte aligned
/// and has -1 behind its end: the scan reads four at a time.
TREESPEC_DEVICE Links find_links(const int32_t* parent, int32_t node, int32_t num_nodes) {
  Links links{-1, -1};
  const int32_t begin = (node + 1) / 4 * 4;
  uint32_t later = 0xFu << (node + 1) % 4;  // of the first four, those after the node
  const bool has_siblings = parent[node] >= 0;
  for (int32_t j = begin; j < num_nodes; j += 4) {
    const simt::Words4 four = simt::load_16_bytes(parent + j);
    const uint32_t children = equal_bits(four, node);
    const uint32_t siblings = has_siblings ? equal_bits(four, parent[node]) & later : 0;
    if (links.first_child < 0 && children != 0) links.first_child = j + simt::lowest_bit(children);
    if (links.next_sibling < 0 && siblings != 0) {
      links.next_sibling = j + simt::lowest_bit(siblings);
    }
    if (links.first_child >= 0 && (links.next_sibling >= 0 || !has_siblings)) break;
    later = 0xFu;
  }
  return links;
}

/// Grid x: shares of a tree's nodes and words; y: the batch.
struct LayOut {
  static constexpr int kThreads = 256;
  Trees trees;
  const int32_t* prefix_length;
  TreeLayout out;
  uint32_t* status;

  TREESPEC_DEVICE void operator()() const {
    const int b = simt::block_y();
    auto* parent = reinterpret_cast<int32_t*>(simt::shared_memory());
    if (simt::thread() < 4) parent[trees.max_nodes + simt::thread()] = -1;
    const int32_t num_nodes = load_parents<kThreads>(trees, b, parent, status);
    const int32_t share = simt::block() * kThreads + simt::thread();
    const int32_t step = simt::num_blocks() * kThreads;
    const int64_t first = int64_t{b} * trees.max_nodes;

    const int32_t words = mask_words(trees.max_nodes);
    uint32_t* bits = out.ancestor_bits + first * words;
    for (int32_t i = share; i < trees.max_nodes * words; i += step) {
      bits[i] = ancestor_word(parent, i / words, i % words);
    }
    for (int32_t i = share; i < trees.max_nodes; i += step) {
      out.position[first + i] = position(b, i, num_nodes, parent);
      if (out.first_child == nullptr && out.next_sibling == nullptr) continue;
      const Links links = i < num_nodes ? find_links(parent, i, num_nodes) : Links{-1, -1};
      if (out.first_child != nullptr) out.first_child[first + i] = links.first_child;
      if (out.next_sibling != nullptr) out.next_sibling[first + i] = links.next_sibling;
    }
    if (share == 0 && prefix_length[b] < 0) report(status, b, kOutOfBounds);
  }

  TREESPEC_DEVICE int32_t position(int b, int32_t node, int32_t num_nodes,
                                   const int32_t* parent) const {
    if (node >= num_nodes) return prefix_length[b];
    const int32_t* depth = trees.depth + int64_t{b} * trees.max_nodes;
    const int32_t expected = node == 0 ? 0 : parent[node] < 0 ? -1 : depth[parent[node]] + 1;
    if (depth[node] != expected) report(status, b, kBadTree);
    // Unsigned, since nonsense may overflow.
    return static_cast<int32_t>(static_cast<uint32_t>(prefix_length[b]) +
                                static_cast<uint32_t>(depth[node]));
  }
};

}  // namespace

void tree_layout(Stream stream, const Trees& trees, const int32_t* prefix_length,
                 const TreeLayout& out, uint32_t* status) {
  constexpr const char* kWho = "tree_layout";
  check_envelope(kWho, trees);
  check_pointer(kWho, "trees.num_nodes", trees.num_nodes);
  check_pointer(kWho, "trees.parent", trees.parent);
  check_pointer(kWho, "trees.depth", trees.depth);
  check_pointer(kWho, "prefix_length", prefix_length);
  check_pointer(kWho, "out.ancestor_bits", out.ancestor_bits);
  check_pointer(kWho, "out.position", out.position);
  check_pointer(kWho, "status", status);
  // Four words a thread: enough to pay for reading the parents.
  constexpr int32_t kWordsOfBlock = 4 * LayOut::kThreads;
  const int32_t words = trees.max_nodes * mask_words(trees.max_nodes);
  const simt::Grid grid{(words + kWordsOfBlock - 1) / kWordsOfBlock, trees.batch,
                        (static_cast<size_t>(trees.max_nodes) + 4) * sizeof(int32_t)};
  simt::launch(stream, grid, LayOut{trees, prefix_length, out, status});
}

}  // namespace treespec::device
