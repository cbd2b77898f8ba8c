// SPDX-License-Identifier: Apache-2.0
// Step 3 of a round on the device: tree_mask.h for a batch in device memory, lengths included.
//
// Padding nodes (ids from num_nodes on) count as further roots: they see the prefix and themselves,
// and nobody sees them, so that no row of an attention is empty.
#pragma once

#include <cstdint>

#include "treespec/array_view.h"
#include "treespec/device/trees.h"
#include "treespec/stream.h"

namespace treespec::device {

/// Largest `Trees::max_nodes`: parents of a tree fit the shared memory of every GPU.
constexpr int32_t kMaxNodes = 4096;

/// 32-bit words of a row of ancestor bits.
constexpr int32_t mask_words(int32_t max_nodes) { return (max_nodes + 31) / 32; }

/// Topology as attention and verification read it. Device memory of the caller's.
struct TreeLayout {
  /// [batch, max_nodes, mask_words(max_nodes)], as ancestor_mask: bit j % 32 of word j / 32 in row
  /// i is set iff j is i or its ancestor.
  uint32_t* ancestor_bits = nullptr;
  int32_t* position = nullptr;     ///< [batch, max_nodes], prefix_length[b] + depth
  int32_t* first_child = nullptr;  ///< [batch, max_nodes], lowest child, -1: none; null: not wanted
  int32_t* next_sibling = nullptr;  ///< [batch, max_nodes], next child of the parent; same
};

/// Writes the whole layout in one launch. Reads num_nodes, parent and depth of `trees`.
/// `prefix_length`: [batch], the positions of the roots. kBadTree: num_nodes outside
/// [1, max_nodes], a parent out of place, or a depth that is not its parent's plus one;
/// kOutOfBounds: a negative prefix_length.
void tree_layout(Stream stream, const Trees& trees, const int32_t* prefix_length,
                 const TreeLayout& out, uint32_t* status);

/// A mask over a cache of `columns` rows per sequence, in which the prefix takes rows
/// [0, prefix_length[b]) and node j row prefix_length[b] + j; whatever comes after is hidden.
struct MaskShape {
  int64_t columns = 0;
  int32_t first = 0;   ///< queries are the nodes from here on
  int32_t window = 0;  ///< > 0 hides keys with query position - key position >= window
};

/// Bool masks `[batch, max_nodes - first, columns]`, 1 visible, from the bits and positions of
/// `layout`; every element is written. kOutOfBounds: nodes beyond the last column.
void bool_mask(Stream stream, const Trees& trees, const TreeLayout& layout,
               const int32_t* prefix_length, const MaskShape& shape, uint8_t* out,
               uint32_t* status);
/// The additive form: 0 visible, the lowest finite value of `dtype` hidden.
void additive_mask(Stream stream, const Trees& trees, const TreeLayout& layout,
                   const int32_t* prefix_length, const MaskShape& shape, DType dtype, void* out,
                   uint32_t* status);

/// Preorder form, both `[batch, max_nodes]`: j is i or its ancestor iff rank[j] <= rank[i] <
/// end[j]. Children by id; the ranks of padding nodes are their ids. kBadTree as in tree_layout,
/// depths aside.
void preorder_intervals(Stream stream, const Trees& trees, int32_t* rank, int32_t* end,
                        uint32_t* status);

/// Sequence-id form: leaves numbered by id; node i belongs to the leaves
/// id[offset[i] : offset[i + 1]], ascending; padding nodes to none. `offset`:
/// [batch, max_nodes + 1], `id`: [batch, capacity]. kBadTree as above; kOutOfBounds: more than
/// `capacity` ids, of which the first are written; the offsets hold in any case.
void sequence_ids(Stream stream, const Trees& trees, int32_t capacity, int32_t* offset, int32_t* id,
                  uint32_t* status);

}  // namespace treespec::device
