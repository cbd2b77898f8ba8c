// SPDX-License-Identifier: Apache-2.0
// Writes a TreeLayout from parents in shared memory: for tree_layout, and for kernels that have
// just built the tree.
#pragma once

#include <simt.cuh>

#include "treespec/device/tree_mask.h"

namespace treespec::device {

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

/// One tree, as a kernel holds it.
struct LayoutWriter {
  TreeLayout out;
  int32_t max_nodes;
  int32_t num_nodes;
  const int32_t* parent;  ///< [max_nodes + 3] in shared memory, as find_links wants it
  const int32_t* depth;   ///< [num_nodes]
  int32_t prefix_length;

  /// Writes what falls to one thread: words and nodes `share`, `share + step`, ... of sequence `b`.
  TREESPEC_DEVICE void write(int b, int32_t share, int32_t step) const {
    const int64_t first = int64_t{b} * max_nodes;
    const int32_t words = mask_words(max_nodes);
    uint32_t* bits = out.ancestor_bits + first * words;
    for (int32_t i = share; i < max_nodes * words; i += step) {
      bits[i] = ancestor_word(parent, i / words, i % words);
    }
    for (int32_t i = share; i < max_nodes; i += step) {
      // Unsigned, since nonsense may overflow.
      out.position[first + i] =
          static_cast<int32_t>(static_cast<uint32_t>(prefix_length) +
                               static_cast<uint32_t>(i < num_nodes ? depth[i] : 0));
      if (out.first_child == nullptr && out.next_sibling == nullptr) continue;
      const Links links = i < num_nodes ? find_links(parent, i, num_nodes) : Links{-1, -1};
      if (out.first_child != nullptr) out.first_child[first + i] = links.first_child;
      if (out.next_sibling != nullptr) out.next_sibling[first + i] = links.next_sibling;
    }
  }
};

}  // namespace treespec::device
