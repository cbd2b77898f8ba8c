// SPDX-License-Identifier: Apache-2.0
#include <simt.cuh>

#include "checks.h"
#include "tree.cuh"
#include "tree_layout.cuh"
#include "treespec/device/tree_mask.h"

namespace treespec::device {
namespace {

/// Grid x: shares of a tree's nodes and words; y: the batch.
struct LayOut {
  static constexpr int kThreads = 256;
  Trees trees;
  const int32_t* prefix_length;
  TreeLayout out;
  uint32_t* status;

  static size_t shared_bytes(int32_t max_nodes) {
    return (static_cast<size_t>(max_nodes) + 3) * sizeof(int32_t);
  }

  TREESPEC_DEVICE void operator()() const {
    const int b = simt::block_y();
    auto* parent = reinterpret_cast<int32_t*>(simt::shared_memory());
    if (simt::thread() < 3) parent[trees.max_nodes + simt::thread()] = -1;
    const int32_t* depth = trees.depth + int64_t{b} * trees.max_nodes;
    const int32_t num_nodes = load_parents<kThreads>(trees, b, parent, status);
    const LayoutWriter writer{out, trees.max_nodes, num_nodes, parent, depth, prefix_length[b]};
    writer.write(b, simt::block() * kThreads + simt::thread(), simt::num_blocks() * kThreads);
    if (simt::block() == 0) check(b, num_nodes, parent, depth);
  }

  TREESPEC_DEVICE void check(int b, int32_t num_nodes, const int32_t* parent,
                             const int32_t* depth) const {
    bool bad = false;
    for (int32_t i = simt::thread(); i < num_nodes; i += kThreads) {
      const int32_t expected = parent[i] < 0 ? 0 : depth[parent[i]] + 1;
      bad = bad || depth[i] != expected;
    }
    if (bad) report(status, b, kBadTree);
    if (simt::thread() == 0 && prefix_length[b] < 0) report(status, b, kOutOfBounds);
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
                        LayOut::shared_bytes(trees.max_nodes)};
  simt::launch(stream, grid, LayOut{trees, prefix_length, out, status});
}

}  // namespace treespec::device
