// SPDX-License-Identifier: Apache-2.0
// From sketches to trees, and their laws packed one after the other.
#include <simt.cuh>

#include "block_reduce.cuh"
#include "builders/sketch.cuh"
#include "builders/write_tree.cuh"

namespace treespec::device {
namespace {

struct WriteTrees {
  static constexpr int kThreads = 256;
  BuildRequest request;
  Sketches sketches;
  Trees trees;
  LawOutput law;

  struct Shared {
    int32_t scratch[kThreads / simt::kWarpSize];
    int32_t id[kMostDrafted + 1];      // of a sketch node
    int32_t node[kMostDrafted + 1];    // of an id
    int32_t offset[kMostDrafted + 2];  // of an id's draws
  };

  TREESPEC_DEVICE void operator()() const {
    const int b = simt::block();
    const Sketch sketch = sketches.of_sequence(b);
    Shared& s = *reinterpret_cast<Shared*>(simt::shared_memory());
    const TreeView tree = TreeView::of_sequence(trees, b);
    const int32_t num_nodes = number(sketch, s);
    write_nodes<kThreads>(tree, num_nodes, [&](int32_t i) {
      const SketchNode& n = sketch.node[s.node[i]];
      if (i == 0) return TreeNode{root_token_of(request, b), -1, 0, 0.0f};
      return TreeNode{n.token, s.id[n.parent], n.depth, n.score};
    });
    write_draws(sketch, tree, num_nodes, s);
    if (law.row_of_node != nullptr) write_law_sizes(sketch, num_nodes, b, s);
  }

  /// Ids of the nodes that are alive, in their order; returns how many.
  TREESPEC_DEVICE int32_t number(const Sketch& sketch, Shared& s) const {
    const int32_t size = sketch.header->size;
    int32_t count = 0;
    for (int32_t first = 0; first < size; first += kThreads) {
      const int32_t i = first + simt::thread();
      const bool alive = i < size && sketch.node[i].alive != 0 && count < trees.max_nodes;
      const auto sum = simt::block_prefix_sum<kThreads>(int32_t{alive}, s.scratch);
      if (alive) {
        s.id[i] = count + sum.before;
        s.node[count + sum.before] = i;
      }
      count += sum.total;
    }
    simt::sync_block();
    return count;
  }

  /// Draws that were made, in order; they come before those that were not.
  TREESPEC_DEVICE static int32_t num_drawn(const Sketch& sketch, const SketchNode& n) {
    int32_t made = 0;
    while (made < n.num_draws && sketch.target[n.first_draw + made] >= 0) ++made;
    return made;
  }

  TREESPEC_DEVICE void write_draws(const Sketch& sketch, const TreeView& tree, int32_t num_nodes,
                                   Shared& s) const {
    int32_t count = 0;
    for (int32_t first = 0; first <= tree.max_nodes; first += kThreads) {
      const int32_t i = first + simt::thread();
      const int32_t made = i < num_nodes ? num_drawn(sketch, sketch.node[s.node[i]]) : 0;
      const auto sum = simt::block_prefix_sum<kThreads>(made, s.scratch);
      if (i <= tree.max_nodes) tree.draw_offset[i] = count + sum.before;
      for (int32_t j = 0; j < made; ++j) {
        const int32_t target = sketch.target[sketch.node[s.node[i]].first_draw + j];
        tree.draw[count + sum.before + j] = s.id[target];
      }
      if (i < num_nodes) s.offset[i] = made;
      count += sum.total;
    }
    simt::sync_block();
  }

  TREESPEC_DEVICE void write_law_sizes(const Sketch& sketch, int32_t num_nodes, int b,
                                       const Shared& s) const {
    const int64_t row = int64_t{b} * trees.max_nodes;
    for (int32_t i = simt::thread(); i < trees.max_nodes; i += kThreads) {
      const bool drew = i < num_nodes && s.offset[i] > 0;
      law.row_of_node[row + i] = drew ? static_cast<int32_t>(row + i) : -1;
      law.row_offset[row + i + 1] = drew ? sketch.node[s.node[i]].law_size : 0;
    }
  }
};

/// Turns sizes of rows into their offsets, a block for all of them.
struct SumLawSizes {
  static constexpr int kThreads = 512;
  int64_t num_rows;
  int64_t* row_offset;

  TREESPEC_DEVICE void operator()() const {
    auto* scratch = reinterpret_cast<uint64_t*>(simt::shared_memory());
    uint64_t count = 0;
    for (int64_t first = 0; first < num_rows; first += kThreads) {
      const int64_t r = first + simt::thread();
      const uint64_t size = r < num_rows ? static_cast<uint64_t>(row_offset[r + 1]) : 0;
      const auto sum = simt::block_prefix_sum<kThreads>(size, scratch);
      if (r < num_rows) row_offset[r + 1] = static_cast<int64_t>(count + sum.before + size);
      count += sum.total;
    }
    if (simt::thread() == 0) row_offset[0] = 0;
  }
};

struct CopyLaws {
  static constexpr int kThreads = 128;
  Sketches sketches;
  Trees trees;
  LawOutput law;

  /// A node per block: the i-th that is alive.
  TREESPEC_DEVICE void operator()() const {
    const int b = simt::block_y();
    const int64_t row = int64_t{b} * trees.max_nodes + simt::block();
    const int64_t begin = law.row_offset[row];
    const auto size = static_cast<int32_t>(law.row_offset[row + 1] - begin);
    if (size == 0) return;
    auto* found = reinterpret_cast<int32_t*>(simt::shared_memory());
    const Sketch sketch = sketches.of_sequence(b);
    const int64_t from = int64_t{node_at(sketch, found)} * sketches.size.law_width;
    for (int32_t i = simt::thread(); i < size; i += kThreads) {
      law.token[begin + i] = sketch.law_token[from + i];
      law.prob[begin + i] = sketch.law_prob[from + i];
    }
  }

  TREESPEC_DEVICE static int32_t node_at(const Sketch& sketch, int32_t* shared) {
    int32_t* found = shared + kThreads / simt::kWarpSize;
    int32_t count = 0;
    for (int32_t first = 0; first < sketch.header->size; first += kThreads) {
      const int32_t i = first + simt::thread();
      const bool alive = i < sketch.header->size && sketch.node[i].alive != 0;
      const auto sum = simt::block_prefix_sum<kThreads>(int32_t{alive}, shared);
      if (alive && count + sum.before == simt::block()) *found = i;
      count += sum.total;
    }
    simt::sync_block();
    return *found;
  }
};

}  // namespace

void finish_sketches(Stream stream, const BuildRequest& request, const Sketches& sketches,
                     const Trees& trees, const LawOutput& law) {
  const bool lawful = sketches.size.law_width > 0;
  simt::launch(stream, {trees.batch, 1, sizeof(WriteTrees::Shared)},
               WriteTrees{request, sketches, trees, lawful ? law : LawOutput{}});
  if (!lawful) return;
  simt::launch(stream, {trees.batch > 0 ? 1 : 0, 1, 1024},
               SumLawSizes{int64_t{trees.batch} * trees.max_nodes, law.row_offset});
  simt::launch(stream, {trees.max_nodes, trees.batch, 1024}, CopyLaws{sketches, trees, law});
}

}  // namespace treespec::device
