// SPDX-License-Identifier: Apache-2.0
// Fills a growth map level by level, one block per sequence. A place is a node of the sketch, so
// that the order of places is that of the tree.
#include <algorithm>
#include <simt.cuh>

#include "block_reduce.cuh"
#include "builders/check_build.h"
#include "builders/frontier.cuh"
#include "builders/sketch.cuh"

namespace treespec::device {
namespace {

constexpr int kMostPlaces = kMostDrafted + 1;  // the root counted

/// Asks for the rows of those nodes of a level that want children, by place. kOutOfBounds: there
/// are more than the frontier holds.
template <int kThreads>
TREESPEC_DEVICE void open_level(const Sketch& sketch, const FrontierView& out, int32_t level,
                                int32_t root_token, uint32_t* status, int32_t* scratch) {
  const int32_t size = sketch.header->size, handed = sketch.header->num_handed;
  int32_t count = 0;
  for (int32_t first = 0; first < size; first += kThreads) {
    const int32_t i = first + simt::thread();
    const bool open = i < size && sketch.node[i].alive != 0 && sketch.node[i].depth == level &&
                      sketch.node[i].num_draws > 0;
    const auto sum = simt::block_prefix_sum<kThreads>(int32_t{open}, scratch);
    const int32_t at = count + sum.before;
    if (open && at < out.max_nodes) {
      SketchNode& node = sketch.node[i];
      node.index = handed + at;
      sketch.frontier[at] = i;
      const int32_t parent_index = i == 0 ? -1 : sketch.node[node.parent].index;
      out.put(at,
              {node.index, parent_index, i == 0 ? root_token : node.token, node.depth, node.state});
    }
    count += sum.total;
  }
  if (count > out.max_nodes) {
    if (simt::thread() == 0) simt::atomic_or(status, kOutOfBounds);
    count = out.max_nodes;
  }
  out.end_at<kThreads>(count);
  simt::sync_block();
  if (simt::thread() != 0) return;
  sketch.header->num_handed = handed + count;
  sketch.header->frontier_size = count;
  sketch.header->level = level;
}

struct BeginShape {
  static constexpr int kThreads = 256;
  ShapeSource shape;
  BuildRequest request;
  Trees trees;
  Sketches sketches;
  Frontier frontier;
  uint32_t* status;

  struct Shared {
    int32_t scratch[kThreads / simt::kWarpSize];
    int32_t parent[kMostPlaces];  // -1: the root, or cut off
    int32_t depth[kMostPlaces];
    int32_t kept[kMostPlaces];
  };

  TREESPEC_DEVICE void operator()() const {
    const int b = simt::block();
    const Sketch sketch = sketches.of_sequence(b);
    Shared& s = *reinterpret_cast<Shared*>(simt::shared_memory());
    const int32_t size = shape.num_places + 1;
    read_map(size, b, s);
    cut(size, budget_of(request, trees, b, status), s);
    for (int32_t i = simt::thread(); i < size; i += kThreads) place_node(sketch, i, size, s);
    if (simt::thread() == 0) {
      *sketch.header = {};
      sketch.header->size = size;
    }
    simt::sync_block();
    open_level<kThreads>(sketch, FrontierView::of_sequence(frontier, b), 0,
                         root_token_of(request, b), status + b, s.scratch);
  }

  TREESPEC_DEVICE void read_map(int32_t size, int b, Shared& s) const {
    bool bad = false;
    for (int32_t i = simt::thread(); i < size; i += kThreads) {
      const int32_t p = i > 0 ? shape.parent[i - 1] : -1;
      const bool sound = i == 0 || (p >= 0 && p < i);
      s.parent[i] = sound ? p : 0;
      bad |= !sound;
    }
    if (bad) simt::atomic_or(status + b, kBadTree);
    simt::sync_block();
    for (int32_t i = simt::thread(); i < size; i += kThreads) {
      int32_t depth = 0;
      for (int32_t p = i; p > 0; p = s.parent[p]) ++depth;
      s.depth[i] = depth;
    }
    simt::sync_block();
  }

  /// Keeps what is not too deep and, of that, the first places, or whole levels.
  TREESPEC_DEVICE void cut(int32_t size, int32_t budget, Shared& s) const {
    int32_t count = -1;  // the root is beyond the budget
    for (int32_t first = 0; first < size; first += kThreads) {
      const int32_t i = first + simt::thread();
      const bool fits = i < size && s.depth[i] <= shape.max_depth;
      const auto sum = simt::block_prefix_sum<kThreads>(int32_t{fits}, s.scratch);
      int32_t needed = count + sum.before + 1;
      if (fits && shape.whole_levels) {
        needed = -1;
        for (int32_t k = 0; k < size; ++k) needed += s.depth[k] <= s.depth[i];
      }
      if (i < size) s.kept[i] = fits && needed <= budget;
      count += sum.total;
    }
    simt::sync_block();
  }

  /// An empty place that knows where its draws are: those of a place follow each other.
  TREESPEC_DEVICE void place_node(const Sketch& sketch, int32_t i, int32_t size,
                                  const Shared& s) const {
    SketchNode node{};
    node.parent = s.parent[i];
    node.depth = s.depth[i];
    node.index = -1;
    node.alive = i == 0 ? 1 : 0;
    int32_t own_draw = 0;
    for (int32_t k = 1; k < size; ++k) {
      if (s.kept[k] == 0) continue;
      node.first_draw += s.parent[k] < i;
      node.num_draws += s.parent[k] == i;
      own_draw += s.parent[k] < s.parent[i] || (s.parent[k] == s.parent[i] && k < i);
    }
    if (s.kept[i] == 0) node.num_draws = 0;
    sketch.node[i] = node;
    sketch.target[i] = -1;
    if (i > 0 && s.kept[i] != 0) sketch.place[own_draw] = i;
  }
};

struct FillLevel {
  static constexpr int kThreads = 256;
  static constexpr int kWarps = kThreads / simt::kWarpSize;
  bool drawn;
  ListSource lists;
  Trees trees;
  Sketches sketches;
  Frontier frontier;
  uint32_t* status;

  TREESPEC_DEVICE void operator()() const {
    const int b = simt::block();
    const Sketch sketch = sketches.of_sequence(b);
    const int32_t frontier_size = sketch.header->frontier_size, level = sketch.header->level;
    if (frontier_size == 0) return;
    const Lists source = Lists::of_sequence(lists, b);
    for (int32_t i = simt::warp(); i < frontier_size; i += kWarps) {
      const int32_t node = sketch.frontier[i];
      if (!drawn) choose_likeliest(sketch, source, node, i, b);
      simt::sync_warp();
      add_children(sketch, source, node);
    }
    simt::sync_block();
    open_level<kThreads>(sketch, FrontierView::of_sequence(frontier, b), level + 1, 0, status + b,
                         reinterpret_cast<int32_t*>(simt::shared_memory()));
  }

  TREESPEC_DEVICE void choose_likeliest(const Sketch& sketch, const Lists& source, int32_t node,
                                        int32_t i, int b) const {
    const SketchNode& n = sketch.node[node];
    bool bad_row = false, bad_number = false;
    const int32_t list = source.list_of(n.depth, n.state, i, bad_row);
    for (int32_t j = simt::lane(); j < n.num_draws; j += simt::kWarpSize) {
      const bool there = list >= 0 && j < source.width;
      const float logprob = there ? source.logprob[list + j] : kImpossible;
      bad_number |= unsound(logprob);
      sketch.drawn[n.first_draw + j] = logprob > kImpossible ? list + j : -1;
    }
    if (bad_number) simt::atomic_or(status + b, kNotANumber);
    if (bad_row && simt::lane() == 0) simt::atomic_or(status + b, kOutOfBounds);
  }

  /// The first draw of a token makes a node at its own place; later ones meet it.
  TREESPEC_DEVICE static void add_children(const Sketch& sketch, const Lists& source,
                                           int32_t node) {
    const SketchNode n = sketch.node[node];
    const int32_t* drawn_entry = sketch.drawn + n.first_draw;
    for (int32_t j = simt::lane(); j < n.num_draws; j += simt::kWarpSize) {
      const int32_t entry = drawn_entry[j];
      if (entry < 0) continue;
      int32_t first = 0;
      while (drawn_entry[first] != entry) ++first;
      const int32_t place = sketch.place[n.first_draw + first];
      sketch.target[n.first_draw + j] = place;
      if (first != j) continue;
      SketchNode child = sketch.child(node, source, entry);
      child.first_draw = sketch.node[place].first_draw;
      child.num_draws = sketch.node[place].num_draws;
      sketch.node[place] = child;
    }
  }
};

SketchSize size_of_shape(int32_t max_nodes, int32_t num_places, int32_t list_width,
                         Proposal proposal) {
  return {std::max(max_nodes, num_places + 1),
          proposal == Proposal::kDeterministic ? 0 : list_width};
}

void check_shape(const char* who, const ShapeSource& shape, const Trees& trees) {
  check_trees(who, trees);
  TREESPEC_CHECK(shape.num_places >= 0 && shape.num_places <= kMostDrafted, who,
                 ": shape.num_places must be in [0, ", kMostDrafted, "], got ", shape.num_places);
  TREESPEC_CHECK(shape.max_depth >= 0, who, ": shape.max_depth must be >= 0, got ",
                 shape.max_depth);
}

}  // namespace

size_t shape_workspace_bytes(int32_t batch, int32_t max_nodes, int32_t num_places,
                             int32_t list_width, Proposal proposal) {
  return static_cast<size_t>(batch) *
         static_cast<size_t>(size_of_shape(max_nodes, num_places, list_width, proposal).bytes());
}

void begin_shape(Stream stream, const ShapeSource& shape, int32_t list_width, Proposal proposal,
                 const BuildRequest& request, const Trees& trees, void* workspace,
                 const Frontier& frontier, uint32_t* status) {
  check_shape("begin_shape", shape, trees);
  TREESPEC_CHECK(frontier.max_nodes >= 1, "begin_shape: frontier.max_nodes must be >= 1, got ",
                 frontier.max_nodes);
  const Sketches sketches(workspace,
                          size_of_shape(trees.max_nodes, shape.num_places, list_width, proposal));
  simt::launch(stream, {trees.batch, 1, sizeof(BeginShape::Shared)},
               BeginShape{shape, request, trees, sketches, frontier, status});
}

void grow_shape(Stream stream, const ShapeSource& shape, const DrawOptions& draws,
                const ListSource& lists, const Trees& trees, void* workspace,
                const Frontier& frontier, uint32_t* status) {
  check_shape("grow_shape", shape, trees);
  check_lists("grow_shape", lists);
  const bool drawn = draws.proposal != Proposal::kDeterministic;
  TREESPEC_CHECK(!drawn || draws.key != nullptr, "grow_shape: key must be given to draw");
  const Sketches sketches(
      workspace, size_of_shape(trees.max_nodes, shape.num_places, lists.width, draws.proposal));
  if (drawn) {
    draw_rows(stream, draws.proposal, draws.key, lists, sketches, trees.batch, frontier.max_nodes,
              status);
  }
  simt::launch(stream, {trees.batch, 1, 64},
               FillLevel{drawn, lists, trees, sketches, frontier, status});
}

void finish_shape(Stream stream, const ShapeSource& shape, int32_t list_width, Proposal proposal,
                  const BuildRequest& request, void* workspace, const Trees& trees,
                  const LawOutput& law) {
  check_shape("finish_shape", shape, trees);
  const Sketches sketches(workspace,
                          size_of_shape(trees.max_nodes, shape.num_places, list_width, proposal));
  finish_sketches(stream, request, sketches, trees, law);
}

}  // namespace treespec::device
