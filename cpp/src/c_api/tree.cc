// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "c_api/border.h"
#include "c_api/handles.h"
#include "c_api/structs.h"
#include "treespec/error.h"
#include "treespec/token_tree.h"
#include "treespec/tree_mask.h"

namespace {

using namespace treespec;     // NOLINT
using namespace treespec::c;  // NOLINT

constexpr int64_t kMostEntries = int64_t{1} << 40;  // of the laws of a tree

DraftRows law_of(const char* who, const treespec_tree_data& data) {
  DraftRows rows;
  if (data.law_vocab_size == 0) return rows;
  rows.vocab_size = size32(who, "data.law_vocab_size", data.law_vocab_size, 0);
  const int64_t num_rows = size32(who, "data.num_law_rows", data.num_law_rows, 0);
  rows.row_of_node = copied(who, "data.law_row_of_node", data.law_row_of_node, data.num_nodes);
  rows.row_offset = copied(who, "data.law_row_offset", data.law_row_offset, num_rows + 1);
  const int64_t size = rows.row_offset.back();
  rows.token = copied(who, "data.law_token", data.law_token, size, kMostEntries);
  rows.prob = copied(who, "data.law_prob", data.law_prob, size, kMostEntries);
  return rows;
}

std::unique_ptr<TokenTree> tree_from(const char* who, const treespec_tree_data& data) {
  auto tree = std::make_unique<TokenTree>();
  tree->token =
      copied(who, "data.token", data.token, size32(who, "data.num_nodes", data.num_nodes, 1));
  tree->parent = copied(who, "data.parent", data.parent, data.num_nodes);
  tree->proposal = proposal_of(who, data.proposal);
  if (data.path_logprob != nullptr) {
    tree->path_logprob = copied(who, "data.path_logprob", data.path_logprob, data.num_nodes);
  }
  if (data.draw_offset != nullptr) {
    tree->draw_offset = copied(who, "data.draw_offset", data.draw_offset, data.num_nodes + 1);
    tree->draw =
        copied(who, "data.draw", data.draw, size32(who, "data.num_draws", data.num_draws, 0));
  }
  complete_tree(*tree);
  tree->draft_probs = law_of(who, data);
  require_sound(who, *tree);
  return tree;
}

/// Elements of a mask with these rows and columns.
int64_t mask_size(const TokenTree& tree, int32_t first, int32_t prefix_length) {
  const int64_t width = int64_t{tree.num_nodes()} + std::max(prefix_length, 0);
  return std::max<int64_t>(int64_t{tree.num_nodes()} - first, 0) * width;
}

}  // namespace

treespec_status treespec_tree_get_data(const treespec_tree* tree, treespec_tree_data* data) {
  return guarded(__func__, [&](const char* who) {
    const TokenTree& known = tree_of(who, tree);
    const DraftRows& law = known.draft_probs;
    treespec_tree_data out{};
    out.num_nodes = known.num_nodes();
    out.token = known.token.data();
    out.parent = known.parent.data();
    out.depth = known.depth.data();
    out.path_logprob = known.path_logprob.data();
    out.draw_offset = known.draw_offset.data();
    out.draw = known.draw.data();
    out.num_draws = static_cast<int64_t>(known.draw.size());
    out.proposal = static_cast<treespec_proposal>(known.proposal);
    if (!law.empty()) {
      out.law_vocab_size = law.vocab_size;
      out.num_law_rows = static_cast<int64_t>(law.row_offset.size()) - 1;
      out.law_row_of_node = law.row_of_node.data();
      out.law_row_offset = law.row_offset.data();
      out.law_token = law.token.data();
      out.law_prob = law.prob.data();
    }
    write_struct(who, "data", data, out);
  });
}

treespec_status treespec_tree_create(const treespec_tree_data* data, treespec_tree** tree) {
  return guarded(__func__, [&](const char* who) {
    treespec_tree*& out = new_handle(who, "tree", tree);
    const treespec_tree_data known = read_struct(who, "data", data);
    check_reserved(who, "data", known.reserved);
    out = owned(tree_from(who, known));
  });
}

void treespec_tree_free(treespec_tree* tree) { delete reinterpret_cast<TokenTree*>(tree); }

treespec_status treespec_tree_check(const treespec_tree* tree) {
  return guarded(__func__, [&](const char* who) {
    std::string all;
    for (const std::string& violation : check_tree(tree_of(who, tree))) {
      all.append(all.empty() ? "" : "; ").append(violation);
    }
    TREESPEC_CHECK(all.empty(), who, ": tree must be sound, got: ", all);
  });
}

treespec_status treespec_mask_bits(const treespec_tree* tree, uint32_t* out, int64_t capacity) {
  return guarded(__func__, [&](const char* who) {
    const std::vector<uint32_t> bits = ancestor_mask(tree_of(who, tree).parent);
    std::copy(bits.begin(), bits.end(),
              output(who, "out", out, capacity, static_cast<int64_t>(bits.size())));
  });
}

treespec_status treespec_mask_bool(const treespec_tree* tree, int32_t first, int32_t prefix_length,
                                   int32_t window, uint8_t* out, int64_t capacity) {
  return guarded(__func__, [&](const char* who) {
    const TokenTree& known = tree_of(who, tree);
    output(who, "out", out, capacity, mask_size(known, first, prefix_length));
    bool_mask(known.parent, known.depth, first, prefix_length, window, out);
  });
}

treespec_status treespec_mask_additive(const treespec_tree* tree, int32_t first,
                                       int32_t prefix_length, int32_t window, treespec_dtype dtype,
                                       void* out, int64_t capacity) {
  return guarded(__func__, [&](const char* who) {
    const TokenTree& known = tree_of(who, tree);
    const DType type = dtype_of(who, dtype);
    output(who, "out", out, capacity, mask_size(known, first, prefix_length));
    additive_mask(known.parent, known.depth, first, prefix_length, window, type, out);
  });
}

treespec_status treespec_mask_intervals(const treespec_tree* tree, int32_t* rank, int32_t* end,
                                        int64_t capacity) {
  return guarded(__func__, [&](const char* who) {
    const TokenTree& known = tree_of(who, tree);
    output(who, "rank", rank, capacity, known.num_nodes());
    output(who, "end", end, capacity, known.num_nodes());
    const Intervals intervals = preorder_intervals(known.parent);
    std::copy(intervals.rank.begin(), intervals.rank.end(), rank);
    std::copy(intervals.end.begin(), intervals.end.end(), end);
  });
}

treespec_status treespec_mask_sequence_ids(const treespec_tree* tree, int32_t* offset,
                                           int64_t offset_capacity, int32_t* id,
                                           int64_t id_capacity) {
  return guarded(__func__, [&](const char* who) {
    const TokenTree& known = tree_of(who, tree);
    output(who, "offset", offset, offset_capacity, int64_t{known.num_nodes()} + 1);
    const SequenceIds ids = sequence_ids(known.parent);
    if (id != nullptr) {
      std::copy(ids.id.begin(), ids.id.end(),
                output(who, "id", id, id_capacity, static_cast<int64_t>(ids.id.size())));
    }
    std::copy(ids.offset.begin(), ids.offset.end(), offset);
  });
}

treespec_status treespec_positions(const treespec_tree* tree, int32_t prefix_length, int32_t* out,
                                   int64_t capacity) {
  return guarded(__func__, [&](const char* who) {
    const TokenTree& known = tree_of(who, tree);
    output(who, "out", out, capacity, known.num_nodes());
    const std::vector<int32_t> positions = tree_positions(known.depth, prefix_length);
    std::copy(positions.begin(), positions.end(), out);
  });
}
