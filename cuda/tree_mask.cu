// SPDX-License-Identifier: Apache-2.0
#include <simt.cuh>

#include "checks.h"
#include "tree.cuh"
#include "treespec/device/tree_mask.h"

namespace treespec::device {
namespace {

/// kRun neighbouring elements a thread: 16 bytes where rows are aligned, else one. Grid y: the
/// batch. T: an unsigned integer of the element's size.
template <class T, int kRun>
struct FillMask {
  static constexpr int kThreads = 256;
  TreeLayout layout;
  const int32_t* num_nodes;
  const int32_t* prefix_length;
  MaskShape shape;
  int32_t max_nodes;
  T visible, hidden;
  T* out;
  uint32_t* status;

  TREESPEC_DEVICE void operator()() const {
    const int b = simt::block_y();
    const auto columns = static_cast<int32_t>(shape.columns);
    const int32_t runs_of_row = columns / kRun;
    const int32_t run = simt::block() * kThreads + simt::thread();
    const int32_t num_rows = max_nodes - shape.first;
    if (run == 0) check_columns(b);
    const int32_t row = run / runs_of_row;
    if (row >= num_rows) return;
    const int32_t column = run % runs_of_row * kRun;
    write(Query(*this, b, row + shape.first), column,
          out + (int64_t{b} * num_rows + row) * columns + column);
  }

  TREESPEC_DEVICE void check_columns(int b) const {
    const int64_t prefix = prefix_length[b];
    if (prefix < 0 || prefix + num_nodes[b] > shape.columns) report(status, b, kOutOfBounds);
  }

  /// One row of the mask.
  struct Query {
    int64_t prefix;
    int64_t oldest;  ///< keys at positions below are outside the window
    const uint32_t* bits;
    const int32_t* position;
    int32_t max_nodes;

    TREESPEC_DEVICE Query(const FillMask& mask, int b, int32_t node)
        : prefix(mask.prefix_length[b]),
          position(mask.layout.position + int64_t{b} * mask.max_nodes),
          max_nodes(mask.max_nodes) {
      const int32_t words = mask_words(max_nodes);
      bits = mask.layout.ancestor_bits + (int64_t{b} * max_nodes + node) * words;
      oldest = mask.shape.window > 0 ? int64_t{position[node]} - mask.shape.window + 1 : 0;
    }
    TREESPEC_DEVICE bool sees(int32_t column) const {
      if (column < prefix) return column >= oldest;
      const int64_t distance = column - prefix;
      if (distance >= max_nodes) return false;
      const auto key = static_cast<int32_t>(distance);
      return (bits[key / 32] >> key % 32 & 1u) != 0 && position[key] >= oldest;
    }
  };

  TREESPEC_DEVICE void write(const Query& query, int32_t column, T* to) const {
    if constexpr (kRun == 1) {
      *to = query.sees(column) ? visible : hidden;
    } else {
      T run[kRun];
      for (int k = 0; k < kRun; ++k) run[k] = query.sees(column + k) ? visible : hidden;
      simt::Words4 words;
      memcpy(&words, run, sizeof words);
      simt::store_16_bytes(to, words);
    }
  }
};

void check_mask(const char* who, const Trees& trees, const TreeLayout& layout,
                const int32_t* prefix_length, const MaskShape& shape, const void* out,
                const uint32_t* status) {
  check_envelope(who, trees);
  constexpr int32_t kMaxElements = 1 << 30;  // of a sequence: they are counted in 32 bits
  const int64_t max_columns = kMaxElements / trees.max_nodes;
  TREESPEC_CHECK(shape.columns >= 1 && shape.columns <= max_columns, who,
                 ": shape.columns must be in [1, ", max_columns, "], got ", shape.columns);
  TREESPEC_CHECK(shape.first >= 0 && shape.first <= trees.max_nodes, who,
                 ": shape.first must be in [0, ", trees.max_nodes, "], got ", shape.first);
  TREESPEC_CHECK(shape.window >= 0, who, ": shape.window must be >= 0 (0 is off), got ",
                 shape.window);
  check_pointer(who, "trees.num_nodes", trees.num_nodes);
  check_pointer(who, "layout.ancestor_bits", layout.ancestor_bits);
  check_pointer(who, "layout.position", layout.position);
  check_pointer(who, "prefix_length", prefix_length);
  check_pointer(who, "out", out);
  check_pointer(who, "status", status);
}

template <class T, int kRun>
void launch_fill(Stream stream, const Trees& trees, const TreeLayout& layout,
                 const int32_t* prefix_length, const MaskShape& shape, T visible, T hidden, T* out,
                 uint32_t* status) {
  using Kernel = FillMask<T, kRun>;
  const int64_t runs = (trees.max_nodes - shape.first) * (shape.columns / kRun);
  simt::launch(stream, {(runs + Kernel::kThreads - 1) / Kernel::kThreads, trees.batch},
               Kernel{layout, trees.num_nodes, prefix_length, shape, trees.max_nodes, visible,
                      hidden, out, status});
}

template <class T>
void fill(Stream stream, const Trees& trees, const TreeLayout& layout, const int32_t* prefix_length,
          const MaskShape& shape, T visible, T hidden, void* out, uint32_t* status) {
  constexpr int kRun = 16 / sizeof(T);
  auto* to = static_cast<T*>(out);
  const bool aligned = shape.columns % kRun == 0 && reinterpret_cast<uintptr_t>(out) % 16 == 0;
  const auto launch = aligned ? launch_fill<T, kRun> : launch_fill<T, 1>;
  launch(stream, trees, layout, prefix_length, shape, visible, hidden, to, status);
}

}  // namespace

void bool_mask(Stream stream, const Trees& trees, const TreeLayout& layout,
               const int32_t* prefix_length, const MaskShape& shape, uint8_t* out,
               uint32_t* status) {
  check_mask("bool_mask", trees, layout, prefix_length, shape, out, status);
  fill<uint8_t>(stream, trees, layout, prefix_length, shape, 1, 0, out, status);
}

void additive_mask(Stream stream, const Trees& trees, const TreeLayout& layout,
                   const int32_t* prefix_length, const MaskShape& shape, DType dtype, void* out,
                   uint32_t* status) {
  check_mask("additive_mask", trees, layout, prefix_length, shape, out, status);
  // The lowest finite values, from their bits.
  constexpr uint16_t kLowestFloat16 = 0xFBFF;
  constexpr uint16_t kLowestBFloat16 = 0xFF7F;
  constexpr uint32_t kLowestFloat32 = 0xFF7FFFFF;
  constexpr uint64_t kLowestFloat64 = 0xFFEFFFFFFFFFFFFF;
  const auto fill_with = [&](auto hidden) {
    fill<decltype(hidden)>(stream, trees, layout, prefix_length, shape, 0, hidden, out, status);
  };
  switch (dtype) {
    case DType::kFloat32:
      return fill_with(kLowestFloat32);
    case DType::kFloat64:
      return fill_with(kLowestFloat64);
    case DType::kFloat16:
      return fill_with(kLowestFloat16);
    case DType::kBFloat16:
      return fill_with(kLowestBFloat16);
  }
}

}  // namespace treespec::device
