// SPDX-License-Identifier: Apache-2.0
// The forms of a tree that number its nodes or leaves: preorder intervals and sequence ids.
#include <simt.cuh>

#include "block_reduce.cuh"
#include "checks.h"
#include "tree.cuh"
#include "treespec/device/tree_mask.h"

namespace treespec::device {
namespace {

/// One block a tree.
struct NumberInPreorder {
  static constexpr int kThreads = 256;
  Trees trees;
  int32_t* rank;
  int32_t* end;
  uint32_t* status;

  static size_t shared_bytes(int32_t max_nodes) {
    return 3 * static_cast<size_t>(max_nodes) * sizeof(int32_t);
  }

  TREESPEC_DEVICE void operator()() const {
    const int b = simt::block();
    auto* parent = reinterpret_cast<int32_t*>(simt::shared_memory());
    int32_t* size = parent + trees.max_nodes;  // of the subtree, the node included
    int32_t* step = size + trees.max_nodes;    // rank minus the parent's rank
    for (int32_t i = simt::thread(); i < trees.max_nodes; i += kThreads) size[i] = 0;
    const int32_t num_nodes = load_parents<kThreads>(trees, b, parent, status);

    for (int32_t i = simt::thread(); i < num_nodes; i += kThreads) {
      for (int32_t j = i; j >= 0; j = parent[j]) simt::atomic_add(size + j, 1);
    }
    simt::sync_block();
    for (int32_t i = simt::thread(); i < num_nodes; i += kThreads) {
      step[i] = parent[i] < 0 ? 0 : 1;
      for (int32_t j = parent[i] + 1; parent[i] >= 0 && j < i; ++j) {
        if (parent[j] == parent[i]) step[i] += size[j];  // an elder sibling
      }
    }
    simt::sync_block();
    const int64_t first = int64_t{b} * trees.max_nodes;
    for (int32_t i = simt::thread(); i < trees.max_nodes; i += kThreads) {
      int32_t place = i;
      if (i < num_nodes) {
        place = 0;
        for (int32_t j = i; j >= 0; j = parent[j]) place += step[j];
      }
      rank[first + i] = place;
      end[first + i] = place + (i < num_nodes ? size[i] : 1);
    }
  }
};

/// One block a tree.
struct NumberLeaves {
  static constexpr int kThreads = 256;
  static constexpr int kWarps = kThreads / simt::kWarpSize;
  Trees trees;
  int32_t capacity;
  int32_t* offset;
  int32_t* id;
  uint32_t* status;

  static size_t shared_bytes(int32_t max_nodes) {
    return (3 * static_cast<size_t>(max_nodes) + kWarps) * sizeof(int32_t);
  }

  TREESPEC_DEVICE void operator()() const {
    const int b = simt::block();
    auto* parent = reinterpret_cast<int32_t*>(simt::shared_memory());
    int32_t* count = parent + trees.max_nodes;  // children, then leaves below, then ids written
    int32_t* leaf = count + trees.max_nodes;    // node of the leaf
    int32_t* scratch = leaf + trees.max_nodes;
    for (int32_t i = simt::thread(); i < trees.max_nodes; i += kThreads) count[i] = 0;
    const int32_t num_nodes = load_parents<kThreads>(trees, b, parent, status);

    const int32_t num_leaves = list_leaves(num_nodes, parent, count, leaf, scratch);
    for (int32_t i = simt::thread(); i < num_nodes; i += kThreads) count[i] = 0;
    simt::sync_block();
    for (int32_t l = simt::thread(); l < num_leaves; l += kThreads) {
      for (int32_t j = leaf[l]; j >= 0; j = parent[j]) simt::atomic_add(count + j, 1);
    }
    simt::sync_block();
    const int32_t total = write_offsets(b, num_nodes, count, scratch);
    if (simt::thread() == 0 && total > capacity) report(status, b, kOutOfBounds);
    simt::sync_block();
    write_ids(b, num_nodes, num_leaves, parent, count, leaf);
  }

 private:
  /// Leaves in the order of their ids, to be read after a barrier; returns how many.
  TREESPEC_DEVICE int32_t list_leaves(int32_t num_nodes, const int32_t* parent, int32_t* count,
                                      int32_t* leaf, int32_t* scratch) const {
    for (int32_t i = simt::thread(); i < num_nodes; i += kThreads) {
      if (parent[i] >= 0) simt::atomic_add(count + parent[i], 1);
    }
    simt::sync_block();
    int32_t found = 0;
    for (int32_t begin = 0; begin < num_nodes; begin += kThreads) {
      const int32_t i = begin + simt::thread();
      const bool is_leaf = i < num_nodes && count[i] == 0;
      const auto sum = simt::block_prefix_sum<kThreads>(is_leaf ? 1 : 0, scratch);
      if (is_leaf) leaf[found + sum.before] = i;
      found += sum.total;
    }
    return found;
  }

  /// Offsets of all nodes, padding included, to memory; returns the last one.
  TREESPEC_DEVICE int32_t write_offsets(int b, int32_t num_nodes, const int32_t* count,
                                        int32_t* scratch) const {
    int32_t* to = offset + int64_t{b} * (trees.max_nodes + 1);
    int32_t total = 0;
    for (int32_t begin = 0; begin < trees.max_nodes; begin += kThreads) {
      const int32_t i = begin + simt::thread();
      const int32_t mine = i < num_nodes ? count[i] : 0;
      const auto sum = simt::block_prefix_sum<kThreads>(mine, scratch);
      if (i < trees.max_nodes) to[i] = total + sum.before;
      total += sum.total;
    }
    if (simt::thread() == 0) to[trees.max_nodes] = total;
    return total;
  }

  /// A warp a node: its lanes look at 32 leaves at a time.
  TREESPEC_DEVICE void write_ids(int b, int32_t num_nodes, int32_t num_leaves,
                                 const int32_t* parent, const int32_t* count,
                                 const int32_t* leaf) const {
    const int32_t* from = offset + int64_t{b} * (trees.max_nodes + 1);
    int32_t* to = id + int64_t{b} * capacity;
    const uint32_t lower_lanes = (1u << simt::lane()) - 1;
    for (int32_t node = simt::warp(); node < num_nodes; node += kWarps) {
      int32_t place = from[node];
      const int32_t end = place + count[node];
      for (int32_t begin = 0; begin < num_leaves && place < end; begin += simt::kWarpSize) {
        const int32_t l = begin + simt::lane();
        int32_t j = l < num_leaves ? leaf[l] : -1;
        while (j > node) j = parent[j];
        const uint32_t below = simt::ballot(j == node);
        const int32_t at = place + simt::count_bits(below & lower_lanes);
        if (j == node && at < capacity) to[at] = l;
        place += simt::count_bits(below);
      }
    }
  }
};

void check_orders(const char* who, const Trees& trees, const uint32_t* status) {
  check_envelope(who, trees);
  check_pointer(who, "trees.num_nodes", trees.num_nodes);
  check_pointer(who, "trees.parent", trees.parent);
  check_pointer(who, "status", status);
}

}  // namespace

void preorder_intervals(Stream stream, const Trees& trees, int32_t* rank, int32_t* end,
                        uint32_t* status) {
  check_orders("preorder_intervals", trees, status);
  check_pointer("preorder_intervals", "rank", rank);
  check_pointer("preorder_intervals", "end", end);
  simt::launch(stream, {trees.batch, 1, NumberInPreorder::shared_bytes(trees.max_nodes)},
               NumberInPreorder{trees, rank, end, status});
}

void sequence_ids(Stream stream, const Trees& trees, int32_t capacity, int32_t* offset, int32_t* id,
                  uint32_t* status) {
  check_orders("sequence_ids", trees, status);
  TREESPEC_CHECK(capacity >= 1, "sequence_ids: capacity must be >= 1, got ", capacity);
  check_pointer("sequence_ids", "offset", offset);
  check_pointer("sequence_ids", "id", id);
  simt::launch(stream, {trees.batch, 1, NumberLeaves::shared_bytes(trees.max_nodes)},
               NumberLeaves{trees, capacity, offset, id, status});
}

}  // namespace treespec::device
