// SPDX-License-Identifier: Apache-2.0
// Step 3 of a round: who may attend to whom, in every format engines take. Ancestor bits are the
// source.
#pragma once

#include <cstdint>
#include <vector>

#include "treespec/array_view.h"

namespace treespec {

/// Ancestor-or-self bits, `[N, words]` with words = ceil(N / 32); bit j % 32 of word j / 32 in row
/// i is set iff j is i or an ancestor of i. O(N * words).
std::vector<uint32_t> ancestor_mask(ArrayView<const int32_t> parent);

/// position[i] = prefix_length + depth[i].
std::vector<int32_t> tree_positions(ArrayView<const int32_t> depth, int32_t prefix_length);

/// Rows `[N - first, prefix_length + N]` of the mask: nodes `first..N-1` as queries, the whole
/// prefix (if `window` lets) and their ancestors as keys. `window` > 0 hides keys with query
/// position - key position >= window (Hugging Face's rule); 0 hides none. Bool form: 1 visible.
/// `out` is row-major and fully written.
void bool_mask(ArrayView<const int32_t> parent, ArrayView<const int32_t> depth, int32_t first,
               int32_t prefix_length, int32_t window, uint8_t* out);
/// Additive form: 0 visible, the lowest finite value of `dtype` hidden (never -inf: a padded row
/// would turn to NaN).
void additive_mask(ArrayView<const int32_t> parent, ArrayView<const int32_t> depth, int32_t first,
                   int32_t prefix_length, int32_t window, DType dtype, void* out);

/// Preorder form: j is i or its ancestor iff rank[j] <= rank[i] < end[j].
struct Intervals {
  std::vector<int32_t> rank;  ///< [N] place of the node in preorder (children by id)
  std::vector<int32_t> end;   ///< [N] rank + subtree size
};
Intervals preorder_intervals(ArrayView<const int32_t> parent);

/// Sequence-id form (llama.cpp style batches): every leaf is a sequence, numbered by leaf id order;
/// node i belongs to sequences id[offset[i] : offset[i + 1]], ascending.
struct SequenceIds {
  std::vector<int32_t> offset;  ///< [N + 1]
  std::vector<int32_t> id;
};
SequenceIds sequence_ids(ArrayView<const int32_t> parent);

}  // namespace treespec
