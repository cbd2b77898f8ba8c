// SPDX-License-Identifier: Apache-2.0
// From sketches to trees, and their laws.
#include <simt.cuh>

#include "block_reduce.cuh"
#include "builders/pack_laws.cuh"
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
        sketch.moved[count + sum.before] = i;
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

}  // namespace

void finish_sketches(Stream stream, const BuildRequest& request, const Sketches& sketches,
                     const Trees& trees, const LawOutput& law) {
  const bool lawful = sketches.size.law_width > 0;
  simt::launch(stream, {trees.batch, 1, sizeof(WriteTrees::Shared)},
               WriteTrees{request, sketches, trees, lawful ? law : LawOutput{}});
  if (lawful) pack_laws(stream, sketches.laws(), trees, law);
}

}  // namespace treespec::device
