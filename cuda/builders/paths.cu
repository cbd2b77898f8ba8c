// SPDX-License-Identifier: Apache-2.0
// Rollouts and delayed trees: cursors that walk down by independent draws, one block per sequence.
// The draws of a node follow the order of its cursors, and nodes are numbered in it.
#include <algorithm>
#include <simt.cuh>

#include "block_reduce.cuh"
#include "builders/check_build.h"
#include "builders/frontier.cuh"
#include "builders/sketch.cuh"

namespace treespec::device {
namespace {

constexpr int kThreads = 256;
constexpr size_t kScratchBytes = 64;
constexpr int32_t kLongest = 8;  // of a part whose length is chosen by the budget

/// Place of cursor `c` among those at its node.
TREESPEC_DEVICE int32_t turn_of(const int32_t* cursor, int32_t c) {
  int32_t turn = 0;
  for (int32_t k = 0; k < c; ++k) turn += cursor[k] == cursor[c];
  return turn;
}

/// Asks for the rows of the distinct nodes of the cursors, and says where their draws go.
TREESPEC_DEVICE void start_level(const Sketch& sketch, const FrontierView& out,
                                 int32_t root_token) {
  auto* scratch = reinterpret_cast<int32_t*>(simt::shared_memory());
  Sketch::Header& header = *sketch.header;
  const bool over = header.level == header.trunk + header.branch;
  const int32_t num_cursors = over ? 0 : header.num_cursors;
  const int32_t handed = header.num_handed, drawn = header.num_draws;
  const int32_t* cursor = sketch.place;
  int32_t count = 0, num_draws = 0;
  for (int32_t first = 0; first < num_cursors; first += kThreads) {
    const int32_t c = first + simt::thread();
    const bool opens = c < num_cursors && turn_of(cursor, c) == 0;
    int32_t here = 0;
    for (int32_t k = c; opens && k < num_cursors; ++k) here += cursor[k] == cursor[c];
    const auto slot = simt::block_prefix_sum<kThreads>(int32_t{opens}, scratch);
    const auto draws = simt::block_prefix_sum<kThreads>(here, scratch);
    if (opens) {
      const int32_t at = count + slot.before;
      const int32_t i = cursor[c];
      SketchNode& node = sketch.node[i];
      node.index = handed + at;
      node.first_draw = drawn + num_draws + draws.before;
      node.num_draws = here;
      sketch.frontier[at] = i;
      const int32_t parent_index = i == 0 ? -1 : sketch.node[node.parent].index;
      out.put(at,
              {node.index, parent_index, i == 0 ? root_token : node.token, node.depth, node.state});
    }
    count += slot.total;
    num_draws += draws.total;
  }
  out.end_at<kThreads>(count);
  simt::sync_block();
  if (simt::thread() != 0) return;
  header.frontier_size = count;
  header.num_handed = handed + count;
  header.num_draws = drawn + num_draws;
}

/// At the end of the trunk its cursor becomes all the paths.
TREESPEC_DEVICE void fork_at_trunk_end(const Sketch& sketch) {
  Sketch::Header& header = *sketch.header;
  const int32_t num_paths = header.num_paths;
  const bool forks = header.level == header.trunk && header.branch > 0 && header.num_cursors > 0;
  const int32_t front = sketch.place[0];
  simt::sync_block();
  if (!forks) return;
  for (int32_t c = simt::thread(); c < num_paths; c += kThreads) sketch.place[c] = front;
  if (simt::thread() == 0) header.num_cursors = num_paths;
  simt::sync_block();
}

/// The lengths of trunk and paths within a node budget; no paths: it cannot hold what is asked for.
struct Lengths {
  int32_t num_paths, trunk, branch;

  /// What is asked for sequence `b`; no paths: nothing that can be had.
  TREESPEC_DEVICE static Lengths asked(const PathOptions& options, int b) {
    if (options.lengths == nullptr) return {options.num_paths, options.trunk, options.branch};
    const int32_t* own = options.lengths + int64_t{b} * 3;
    const bool valid = own[0] >= 1 && own[0] <= options.num_paths && own[1] >= 0 && own[2] >= 0;
    return valid ? Lengths{own[0], own[1], own[2]} : Lengths{0, 0, 0};
  }

  TREESPEC_DEVICE static Lengths within(const PathOptions& options, int b, int32_t budget) {
    Lengths l = asked(options, b);
    if (l.num_paths == 0) return l;
    const int32_t depth = options.max_depth;
    if (options.rollouts) {
      if (l.num_paths > budget) l.num_paths = budget > 1 ? budget : 1;
      l.trunk = 0;
      l.branch = budget / l.num_paths;
    } else {
      const int64_t least =
          int64_t{l.num_paths} * (l.branch > 0 ? l.branch : 0) + (l.trunk > 0 ? l.trunk : 0);
      if (least > budget) return {0, 0, 0};
      if (l.branch < 0) {
        l.branch = shorter(
            l.trunk < 0 ? budget / (l.num_paths + 1) : (budget - l.trunk) / l.num_paths, kLongest);
      }
      if (l.trunk < 0) l.trunk = shorter(budget - l.num_paths * l.branch, kLongest);
    }
    l.trunk = shorter(l.trunk, depth);
    l.branch = shorter(l.branch, depth - l.trunk);
    return l;
  }
  static TREESPEC_DEVICE int32_t shorter(int32_t a, int32_t b) { return a < b ? a : b; }
};

struct BeginPaths {
  static constexpr int kThreads = device::kThreads;
  PathOptions options;
  BuildRequest request;
  Trees trees;
  Sketches sketches;
  Frontier frontier;
  uint32_t* status;

  TREESPEC_DEVICE void operator()() const {
    const int b = simt::block();
    const Sketch sketch = sketches.of_sequence(b);
    const Lengths lengths = Lengths::within(options, b, budget_of(request, trees, b, status));
    for (int32_t i = simt::thread(); i < trees.max_nodes; i += kThreads) sketch.target[i] = -1;
    if (simt::thread() == 0) {
      if (lengths.num_paths == 0) simt::atomic_or(status + b, kOutOfBounds);
      *sketch.header = {};
      sketch.header->size = 1;
      sketch.header->num_cursors = 1;
      sketch.header->num_paths = lengths.num_paths;
      sketch.header->trunk = lengths.trunk;
      sketch.header->branch = lengths.branch;
      SketchNode root{};
      root.parent = -1;
      root.index = -1;
      root.alive = 1;
      sketch.node[0] = root;
      sketch.place[0] = 0;
    }
    simt::sync_block();
    fork_at_trunk_end(sketch);
    start_level(sketch, FrontierView::of_sequence(frontier, b), root_token_of(request, b));
  }
};

struct MoveCursors {
  static constexpr int kThreads = device::kThreads;
  ListSource lists;
  Sketches sketches;
  Frontier frontier;

  TREESPEC_DEVICE void operator()() const {
    const int b = simt::block();
    const Sketch sketch = sketches.of_sequence(b);
    if (sketch.header->frontier_size == 0) return;
    move(sketch, Lists::of_sequence(lists, b));
    fork_at_trunk_end(sketch);
    start_level(sketch, FrontierView::of_sequence(frontier, b), 0);
  }

  /// Every cursor takes its draw; those at a dead end stop.
  TREESPEC_DEVICE static void move(const Sketch& sketch, const Lists& source) {
    auto* scratch = reinterpret_cast<int32_t*>(simt::shared_memory());
    const int32_t num_cursors = sketch.header->num_cursors;
    int32_t size = sketch.header->size;
    for (int32_t first = 0; first < num_cursors; first += kThreads) {
      const int32_t c = first + simt::thread();
      const bool makes = c < num_cursors && is_first(sketch, c);
      const auto sum = simt::block_prefix_sum<kThreads>(int32_t{makes}, scratch);
      if (makes) {
        const int32_t draw = draw_of(sketch, c);
        sketch.node[size + sum.before] = sketch.child(sketch.place[c], source, sketch.drawn[draw]);
        sketch.target[draw] = size + sum.before;
      }
      size += sum.total;
    }
    simt::sync_block();
    int32_t count = 0;
    for (int32_t first = 0; first < num_cursors; first += kThreads) {
      const int32_t c = first + simt::thread();
      const bool goes_on = c < num_cursors && sketch.drawn[draw_of(sketch, c)] >= 0;
      const auto sum = simt::block_prefix_sum<kThreads>(int32_t{goes_on}, scratch);
      if (goes_on) {
        const int32_t draw = draw_of(sketch, c);
        const int32_t met = sketch.target[first_equal(sketch, c)];
        if (first_equal(sketch, c) != draw) sketch.target[draw] = met;
        sketch.moved[count + sum.before] = met;
      }
      count += sum.total;
    }
    simt::sync_block();
    for (int32_t c = simt::thread(); c < count; c += kThreads) sketch.place[c] = sketch.moved[c];
    if (simt::thread() == 0) {
      sketch.header->size = size;
      sketch.header->num_cursors = count;
      ++sketch.header->level;
    }
    simt::sync_block();
  }

  /// Where the draw of cursor `c` is.
  TREESPEC_DEVICE static int32_t draw_of(const Sketch& sketch, int32_t c) {
    return sketch.node[sketch.place[c]].first_draw + turn_of(sketch.place, c);
  }
  /// The first draw at the node of `c` that has its token.
  TREESPEC_DEVICE static int32_t first_equal(const Sketch& sketch, int32_t c) {
    int32_t draw = sketch.node[sketch.place[c]].first_draw;
    while (sketch.drawn[draw] != sketch.drawn[draw_of(sketch, c)]) ++draw;
    return draw;
  }
  TREESPEC_DEVICE static bool is_first(const Sketch& sketch, int32_t c) {
    const int32_t draw = draw_of(sketch, c);
    return sketch.drawn[draw] >= 0 && first_equal(sketch, c) == draw;
  }
};

void check_paths(const char* who, const PathOptions& options, const Trees& trees,
                 const Frontier& frontier) {
  check_trees(who, trees);
  TREESPEC_CHECK(options.num_paths >= 1 && options.num_paths <= kMostDrafted, who,
                 ": num_paths must be in [1, ", kMostDrafted, "], got ", options.num_paths);
  TREESPEC_CHECK(options.trunk >= -1 && options.branch >= -1 && options.max_depth >= 0, who,
                 ": trunk and branch must be >= -1 and max_depth >= 0, got ", options.trunk, ", ",
                 options.branch, " and ", options.max_depth);
  TREESPEC_CHECK(!options.rollouts || options.lengths == nullptr, who,
                 ": lengths must be null for rollouts");
  TREESPEC_CHECK(frontier.max_nodes >= options.num_paths, who,
                 ": frontier.max_nodes must be at least num_paths = ", options.num_paths, ", got ",
                 frontier.max_nodes);
}

Sketches sketches_of(void* workspace, int32_t max_nodes, int32_t list_width) {
  return {workspace, SketchSize{max_nodes, list_width}};
}

}  // namespace

size_t paths_workspace_bytes(int32_t batch, int32_t max_nodes, int32_t list_width) {
  return static_cast<size_t>(batch) *
         static_cast<size_t>(SketchSize{max_nodes, list_width}.bytes());
}

void begin_paths(Stream stream, const PathOptions& options, int32_t list_width,
                 const BuildRequest& request, const Trees& trees, void* workspace,
                 const Frontier& frontier, uint32_t* status) {
  check_paths("begin_paths", options, trees, frontier);
  const Sketches sketches = sketches_of(workspace, trees.max_nodes, list_width);
  simt::launch(stream, {trees.batch, 1, kScratchBytes},
               BeginPaths{options, request, trees, sketches, frontier, status});
}

void grow_paths(Stream stream, const PathOptions& options, const RoundKey* key,
                const ListSource& lists, const Trees& trees, void* workspace,
                const Frontier& frontier, uint32_t* status) {
  check_paths("grow_paths", options, trees, frontier);
  check_lists("grow_paths", lists);
  TREESPEC_CHECK(key != nullptr, "grow_paths: key must be given to draw");
  const Sketches sketches = sketches_of(workspace, trees.max_nodes, lists.width);
  draw_rows(stream, Proposal::kIid, key, lists, sketches, trees.batch,
            std::min(options.num_paths, frontier.max_nodes), status);
  simt::launch(stream, {trees.batch, 1, kScratchBytes}, MoveCursors{lists, sketches, frontier});
}

void finish_paths(Stream stream, int32_t list_width, const BuildRequest& request, void* workspace,
                  const Trees& trees, const LawOutput& law) {
  check_trees("finish_paths", trees);
  const Sketches sketches = sketches_of(workspace, trees.max_nodes, list_width);
  finish_sketches(stream, request, sketches, trees, law);
}

}  // namespace treespec::device
