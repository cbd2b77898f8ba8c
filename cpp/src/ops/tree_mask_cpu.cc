// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <limits>

#include "treespec/error.h"
#include "treespec/tree_mask.h"

namespace treespec {
namespace {

void check_parents(const char* who, ArrayView<const int32_t> parent) {
  TREESPEC_CHECK(parent.size() > 0 && parent[0] == -1, who, ": parent[0] must be -1");
  for (int64_t i = 1; i < parent.size(); ++i) {
    TREESPEC_CHECK(parent[i] >= 0 && parent[i] < i, who, ": parent[", i, "] must be in [0, ", i,
                   "), got ", parent[i]);
  }
}

/// Writes mask rows of any element type; every element once.
template <class T>
void write_mask(ArrayView<const int32_t> parent, ArrayView<const int32_t> depth, int32_t first,
                int32_t prefix, int32_t window, T visible, T hidden, T* out) {
  const int64_t n = parent.size();
  const int64_t width = prefix + n;
  for (int64_t i = first; i < n; ++i) {
    T* row = out + (i - first) * width;
    // Keys at positions below this are outside the window.
    const int64_t oldest = window > 0 ? int64_t{prefix} + depth[i] - window + 1 : 0;
    const int64_t seen_from = std::clamp<int64_t>(oldest, 0, prefix);
    std::fill_n(row, seen_from, hidden);
    std::fill(row + seen_from, row + prefix, visible);
    std::fill_n(row + prefix, n, hidden);
    for (auto j = static_cast<int32_t>(i); j >= 0 && prefix + depth[j] >= oldest; j = parent[j]) {
      row[prefix + j] = visible;
    }
  }
}

void check_mask(const char* who, ArrayView<const int32_t> parent, ArrayView<const int32_t> depth,
                int32_t first, int32_t prefix, int32_t window) {
  check_parents(who, parent);
  TREESPEC_CHECK(depth.size() == parent.size(), who, ": depth must be [", parent.size(), "], got [",
                 depth.size(), "]");
  TREESPEC_CHECK(first >= 0 && first <= parent.size(), who, ": first must be in [0, ",
                 parent.size(), "], got ", first);
  TREESPEC_CHECK(prefix >= 0, who, ": prefix_length must be >= 0, got ", prefix);
  TREESPEC_CHECK(window >= 0, who, ": window must be >= 0 (0 is off), got ", window);
}

/// size[i] of the subtree of i, itself included.
std::vector<int32_t> subtree_sizes(ArrayView<const int32_t> parent) {
  std::vector<int32_t> size(static_cast<size_t>(parent.size()), 1);
  for (int64_t i = parent.size() - 1; i > 0; --i) size[parent[i]] += size[i];
  return size;
}

}  // namespace

std::vector<uint32_t> ancestor_mask(ArrayView<const int32_t> parent) {
  check_parents("ancestor_mask", parent);
  const int64_t words = (parent.size() + 31) / 32;
  std::vector<uint32_t> bits(static_cast<size_t>(parent.size() * words), 0);
  for (int64_t i = 0; i < parent.size(); ++i) {
    uint32_t* row = bits.data() + i * words;
    if (i > 0) std::copy_n(bits.data() + parent[i] * words, words, row);
    row[i / 32] |= 1u << (i % 32);
  }
  return bits;
}

std::vector<int32_t> tree_positions(ArrayView<const int32_t> depth, int32_t prefix_length) {
  TREESPEC_CHECK(prefix_length >= 0, "tree_positions: prefix_length must be >= 0, got ",
                 prefix_length);
  std::vector<int32_t> position(depth.begin(), depth.end());
  for (const int32_t d : depth) {
    TREESPEC_CHECK(prefix_length <= INT32_MAX - d,
                   "tree_positions: positions must be below 2^31, got ", prefix_length, " + ", d);
  }
  for (int32_t& p : position) p += prefix_length;
  return position;
}

void bool_mask(ArrayView<const int32_t> parent, ArrayView<const int32_t> depth, int32_t first,
               int32_t prefix_length, int32_t window, uint8_t* out) {
  check_mask("bool_mask", parent, depth, first, prefix_length, window);
  write_mask<uint8_t>(parent, depth, first, prefix_length, window, 1, 0, out);
}

void additive_mask(ArrayView<const int32_t> parent, ArrayView<const int32_t> depth, int32_t first,
                   int32_t prefix_length, int32_t window, DType dtype, void* out) {
  check_mask("additive_mask", parent, depth, first, prefix_length, window);
  constexpr uint16_t kLowestFloat16 = 0xFBFF;
  constexpr uint16_t kLowestBFloat16 = 0xFF7F;
  switch (dtype) {
    case DType::kFloat32:
      return write_mask(parent, depth, first, prefix_length, window, 0.0f,
                        std::numeric_limits<float>::lowest(), static_cast<float*>(out));
    case DType::kFloat64:
      return write_mask(parent, depth, first, prefix_length, window, 0.0,
                        std::numeric_limits<double>::lowest(), static_cast<double*>(out));
    case DType::kFloat16:
      return write_mask<uint16_t>(parent, depth, first, prefix_length, window, 0, kLowestFloat16,
                                  static_cast<uint16_t*>(out));
    case DType::kBFloat16:
      return write_mask<uint16_t>(parent, depth, first, prefix_length, window, 0, kLowestBFloat16,
                                  static_cast<uint16_t*>(out));
  }
}

Intervals preorder_intervals(ArrayView<const int32_t> parent) {
  check_parents("preorder_intervals", parent);
  const std::vector<int32_t> size = subtree_sizes(parent);
  Intervals out;
  out.rank.assign(size.size(), 0);
  out.end.assign(size.size(), 0);
  std::vector<int32_t> next(size.size(), 0);  // rank of the node's next child
  for (size_t i = 0; i < size.size(); ++i) {
    if (i > 0) {
      out.rank[i] = next[parent[static_cast<int64_t>(i)]];
      next[parent[static_cast<int64_t>(i)]] += size[i];
    }
    next[i] = out.rank[i] + 1;
    out.end[i] = out.rank[i] + size[i];
  }
  return out;
}

SequenceIds sequence_ids(ArrayView<const int32_t> parent) {
  check_parents("sequence_ids", parent);
  const int64_t n = parent.size();
  std::vector<uint8_t> has_child(static_cast<size_t>(n), 0);
  for (int64_t i = 1; i < n; ++i) has_child[parent[i]] = 1;
  std::vector<std::vector<int32_t>> ids(static_cast<size_t>(n));
  int32_t sequence = 0;
  for (int64_t leaf = 0; leaf < n; ++leaf) {
    if (has_child[leaf] != 0) continue;
    for (auto i = static_cast<int32_t>(leaf); i >= 0; i = parent[i]) ids[i].push_back(sequence);
    ++sequence;
  }
  SequenceIds out;
  out.offset = {0};
  for (const auto& of_node : ids) {
    out.id.insert(out.id.end(), of_node.begin(), of_node.end());
    out.offset.push_back(static_cast<int32_t>(out.id.size()));
  }
  return out;
}

}  // namespace treespec
