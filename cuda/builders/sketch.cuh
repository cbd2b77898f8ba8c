// SPDX-License-Identifier: Apache-2.0
// Trees whose children are drawn or stand at fixed places, in the making: what builders share.
#pragma once

#include <simt.cuh>

#include "builders/frontier.cuh"
#include "builders/lists.cuh"
#include "builders/pack_laws.cuh"
#include "treespec/device/tree_builder.h"

namespace treespec::device {

struct SketchNode {
  int32_t token, parent, depth, state;
  float score;
  uint32_t slot;       // path slot: names the node's noise
  int32_t index;       // hand-over number, -1: not handed over
  int32_t alive;       // 0: nothing stands at this place
  int32_t first_draw;  // its draws are positions first_draw ... first_draw + num_draws
  int32_t num_draws;
  int32_t law_size;
};

/// The size of a sketch: nodes of a sequence, and width of the lists its laws come from (0: none).
struct SketchSize {
  static constexpr int64_t kHeaderBytes = 36;
  int32_t max_nodes;
  int32_t law_width;

  int64_t bytes() const {
    const int64_t laws = int64_t{max_nodes} * law_width * 8;
    const int64_t nodes = int64_t{max_nodes} * (static_cast<int64_t>(sizeof(SketchNode)) + 5 * 4);
    return (kHeaderBytes + nodes + laws + 15) / 16 * 16;
  }
};

/// The sketch of one sequence, in the workspace.
struct Sketch {
  struct Header {
    int32_t size;  // nodes or places
    int32_t frontier_size;
    int32_t num_handed;
    int32_t level;
    int32_t num_draws;
    int32_t num_cursors, num_paths, trunk, branch;  // of path builders
  };
  Header* header;
  SketchNode* node;
  int32_t* drawn;     // [max_nodes]: list entry of a draw, -1: none
  int32_t* target;    // [max_nodes]: the node it makes or meets, -1: none
  int32_t* place;     // [max_nodes]: of a draw, in a fixed shape; of path builders: the cursors
  int32_t* moved;     // [max_nodes]: cursors after the level; in the end: node of an id
  int32_t* frontier;  // [max_nodes]: node
  int32_t* law_token;
  float* law_prob;

  TREESPEC_DEVICE static Sketch at(void* workspace, const SketchSize& size, int64_t bytes_each,
                                   int b) {
    Sketch s{};
    char* memory = static_cast<char*>(workspace) + bytes_each * b;
    s.header = reinterpret_cast<Header*>(memory);
    s.node = reinterpret_cast<SketchNode*>(memory + sizeof(Header));
    s.drawn = reinterpret_cast<int32_t*>(s.node + size.max_nodes);
    s.target = s.drawn + size.max_nodes;
    s.place = s.target + size.max_nodes;
    s.moved = s.place + size.max_nodes;
    s.frontier = s.moved + size.max_nodes;
    s.law_token = s.frontier + size.max_nodes;
    s.law_prob = reinterpret_cast<float*>(s.law_token + int64_t{size.max_nodes} * size.law_width);
    return s;
  }

  /// The node that an entry makes below `parent`.
  TREESPEC_DEVICE SketchNode child(int32_t parent, const Lists& source, int32_t entry) const {
    const SketchNode& p = node[parent];
    const int32_t token = source.token[entry];
    return {token,
            parent,
            p.depth + 1,
            source.state_of(entry),
            shared::child_score(p.score, source.logprob[entry]),
            child_slot(p.slot, token),
            -1,
            1,
            0,
            0,
            0};
  }
};

static_assert(sizeof(Sketch::Header) == SketchSize::kHeaderBytes);

/// Where the sketches of a batch are.
struct Sketches {
  void* workspace;
  SketchSize size;
  int64_t bytes_each;

  Sketches(void* memory, const SketchSize& each)
      : workspace(memory), size(each), bytes_each(each.bytes()) {}
  LawStore laws() const {
    const int64_t words = SketchSize::kHeaderBytes +
                          int64_t{size.max_nodes} * static_cast<int64_t>(sizeof(SketchNode));
    const int64_t array = int64_t{size.max_nodes} * 4;
    const int64_t token = words + 5 * array;
    return {workspace,     bytes_each, words + 3 * array, token, token + array * size.law_width,
            size.law_width};
  }
  TREESPEC_DEVICE Sketch of_sequence(int b) const {
    return Sketch::at(workspace, size, bytes_each, b);
  }
};

/// Draws for every frontier node: its law, and the entries of its draws.
void draw_rows(Stream stream, Proposal proposal, const RoundKey* key, const ListSource& lists,
               const Sketches& sketches, int32_t batch, int32_t max_frontier, uint32_t* status);

/// Writes trees and laws (law_width > 0) of all sketches: nodes that are alive, in their order.
void finish_sketches(Stream stream, const BuildRequest& request, const Sketches& sketches,
                     const Trees& trees, const LawOutput& law);

}  // namespace treespec::device
