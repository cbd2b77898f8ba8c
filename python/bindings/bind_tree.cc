// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "bindings.h"
#include "dlpack_view.h"
#include "treespec/error.h"
#include "treespec/token_tree.h"

namespace treespec::python {
namespace {

using Draws = std::vector<std::vector<int32_t>>;
/// vocab_size, row_of_node, row_offset, token, prob: DraftRows as Python has it.
using LawArrays = std::tuple<int32_t, py::object, py::object, py::object, py::object>;

void set_draws(TokenTree& tree, const Draws& draws) {
  const auto n = static_cast<size_t>(tree.num_nodes());
  TREESPEC_CHECK(draws.size() == n, "TokenTree: draws must have one list per node (", n, "), got ",
                 draws.size());
  tree.draw_offset = {0};
  for (const auto& of_node : draws) {
    tree.draw.insert(tree.draw.end(), of_node.begin(), of_node.end());
    tree.draw_offset.push_back(static_cast<int32_t>(tree.draw.size()));
  }
}

/// Keeps the positive entries of the rows of nodes that drew.
template <class T>
void set_law(TokenTree& tree, const RowsView& probs) {
  DraftRows& rows = tree.draft_probs;
  rows.vocab_size = static_cast<int32_t>(probs.width);
  rows.row_offset = {0};
  for (int32_t i = 0; i < tree.num_nodes(); ++i) {
    const bool drew = !tree.draws(i).empty();
    rows.row_of_node.push_back(drew ? static_cast<int32_t>(rows.row_offset.size()) - 1 : -1);
    if (!drew) continue;
    const T* row = static_cast<const T*>(probs.data) + i * probs.row_stride;
    for (int32_t t = 0; t < rows.vocab_size; ++t) {
      if (row[t] == T{0}) continue;
      rows.token.push_back(t);
      rows.prob.push_back(static_cast<float>(row[t]));
    }
    rows.row_offset.push_back(static_cast<int64_t>(rows.prob.size()));
  }
}

std::vector<float> float_list(const py::object& values, const char* name) {
  const BorrowedArray array = borrow(in_host_memory(values), name);
  TREESPEC_CHECK(array.ndim() == 1 && array.is_float && array.bits == 32 && array.is_contiguous(),
                 name, " must be contiguous float32 of one dimension, got ", array.shape_text());
  const auto* first = static_cast<const float*>(array.data);
  return {first, first + array.shape[0]};
}

/// Throws InvalidArgument for rows that lead out of their arrays; their numbers are the verifier's
/// to check.
void check_rows(const DraftRows& rows, int32_t num_nodes) {
  const auto num_entries = static_cast<int64_t>(rows.token.size());
  const auto num_rows = static_cast<int64_t>(rows.row_offset.size()) - 1;
  TREESPEC_CHECK(rows.vocab_size >= 1, "TokenTree: draft_rows: vocab_size must be >= 1, got ",
                 rows.vocab_size);
  TREESPEC_CHECK(rows.row_of_node.size() == static_cast<size_t>(num_nodes),
                 "TokenTree: draft_rows: row_of_node must be [", num_nodes, "], got [",
                 rows.row_of_node.size(), "]");
  TREESPEC_CHECK(rows.prob.size() == rows.token.size(),
                 "TokenTree: draft_rows: token and prob must have the same shape, got [",
                 rows.token.size(), "] and [", rows.prob.size(), "]");
  TREESPEC_CHECK(num_rows >= 0 && rows.row_offset.front() == 0 &&
                     rows.row_offset.back() == num_entries &&
                     std::is_sorted(rows.row_offset.begin(), rows.row_offset.end()),
                 "TokenTree: draft_rows: row_offset must ascend from 0 to ", num_entries);
  for (const int32_t row : rows.row_of_node) {
    TREESPEC_CHECK(row >= -1 && row < num_rows,
                   "TokenTree: draft_rows: row_of_node must be in [-1, ", num_rows, "), got ", row);
  }
  for (const int32_t token : rows.token) {
    TREESPEC_CHECK(token >= 0 && token < rows.vocab_size,
                   "TokenTree: draft_rows: token must be in [0, ", rows.vocab_size, "), got ",
                   token);
  }
}

void set_sparse_law(TokenTree& tree, const LawArrays& law) {
  const auto& [vocab_size, row_of_node, row_offset, token, prob] = law;
  const IntArray nodes = int_array(row_of_node, "TokenTree: draft_rows: row_of_node");
  const IntArray offsets = int_array(row_offset, "TokenTree: draft_rows: row_offset");
  const IntArray tokens = int_array(token, "TokenTree: draft_rows: token");
  DraftRows& rows = tree.draft_probs;
  rows.vocab_size = vocab_size;
  rows.row_of_node.assign(nodes.data(), nodes.data() + nodes.size());
  rows.row_offset.assign(offsets.data(), offsets.data() + offsets.size());
  rows.token.assign(tokens.data(), tokens.data() + tokens.size());
  rows.prob = float_list(prob, "TokenTree: draft_rows: prob");
  check_rows(rows, tree.num_nodes());
}

void set_scores(TokenTree& tree, const py::object& path_logprob) {
  tree.path_logprob = float_list(path_logprob, "TokenTree: path_logprob");
  TREESPEC_CHECK(tree.path_logprob.size() == tree.token.size(), "TokenTree: path_logprob must be [",
                 tree.token.size(), "], got [", tree.path_logprob.size(), "]");
}

TokenTree make_tree(const py::object& token, const py::object& parent, const std::string& proposal,
                    const std::optional<Draws>& draws, const std::optional<py::object>& draft_probs,
                    const std::optional<LawArrays>& draft_rows,
                    const std::optional<py::object>& path_logprob) {
  TokenTree tree;
  const IntArray tokens = int_array(token, "TokenTree: token");
  const IntArray parents = int_array(parent, "TokenTree: parent");
  tree.token.assign(tokens.data(), tokens.data() + tokens.size());
  tree.parent.assign(parents.data(), parents.data() + parents.size());
  tree.proposal = parse_proposal(proposal);
  if (draws) set_draws(tree, *draws);
  if (path_logprob) set_scores(tree, *path_logprob);
  complete_tree(tree);
  TREESPEC_CHECK(!draft_probs || !draft_rows,
                 "TokenTree: draft_probs and draft_rows must not both be given");
  if (draft_rows) set_sparse_law(tree, *draft_rows);
  if (draft_probs) {
    const BorrowedArray borrowed = borrow(in_host_memory(*draft_probs), "draft_probs");
    const RowsView probs = rows_view(borrowed, "draft_probs");
    TREESPEC_CHECK(probs.num_rows == tree.num_nodes(), "TokenTree: draft_probs must be [",
                   tree.num_nodes(), ", V], got ", borrowed.shape_text());
    TREESPEC_CHECK(probs.dtype == DType::kFloat32 || probs.dtype == DType::kFloat64,
                   "TokenTree: draft_probs must be float32 or float64");
    probs.dtype == DType::kFloat64 ? set_law<double>(tree, probs) : set_law<float>(tree, probs);
  }
  return tree;
}

Draws draws_list(const TokenTree& tree) {
  Draws out;
  for (int32_t i = 0; i < tree.num_nodes(); ++i) {
    out.emplace_back(tree.draws(i).begin(), tree.draws(i).end());
  }
  return out;
}

py::object dense_law(const TokenTree& tree) {
  const DraftRows& rows = tree.draft_probs;
  if (rows.empty()) return py::none();
  py::array_t<float> dense({py::ssize_t{tree.num_nodes()}, py::ssize_t{rows.vocab_size}});
  std::fill_n(dense.mutable_data(), dense.size(), 0.0f);
  for (int32_t i = 0; i < tree.num_nodes(); ++i) {
    const int32_t row = rows.row_of_node[i];
    if (row < 0) continue;
    for (int64_t e = rows.row_offset[row]; e < rows.row_offset[row + 1]; ++e) {
      dense.mutable_at(i, rows.token[e]) = rows.prob[e];
    }
  }
  return dense;
}

py::object sparse_law(const TokenTree& tree) {
  const DraftRows& rows = tree.draft_probs;
  if (rows.empty()) return py::none();
  return py::make_tuple(rows.vocab_size, to_numpy(rows.row_of_node), to_numpy(rows.row_offset),
                        to_numpy(rows.token), to_numpy(rows.prob));
}

}  // namespace

void bind_tree(py::module_& m) {
  py::class_<TokenTree>(m, "TokenTree", R"(The draft tree of one round; node 0 is the root.

Arrays are topological (parent[i] < i) in the builder's pop order. `draws`: child ids per node in
draw order, repeats allowed in an i.i.d. tree; children by id when left out (deterministic trees
only). `draft_probs`: [N, V] rows the first child of each node was drawn from. `draft_rows`: the same
law without its zeros, as the property of that name has it. `path_logprob`: [N] float32, 0 when left
out. All are copied, from CUDA memory, too.)")
      .def(py::init(&make_tree), py::arg("token"), py::kw_only(), py::arg("parent"),
           py::arg("proposal") = "deterministic", py::arg("draws") = py::none(),
           py::arg("draft_probs") = py::none(), py::arg("draft_rows") = py::none(),
           py::arg("path_logprob") = py::none())
      .def("__len__", &TokenTree::num_nodes)
      .def("__repr__",
           [](const TokenTree& t) {
             return detail::message("<TokenTree of ", t.num_nodes(), " nodes, ",
                                    proposal_name(t.proposal), ">");
           })
      .def_property_readonly("num_nodes", &TokenTree::num_nodes, "Root and drafted nodes.")
      .def_property_readonly(
          "token", [](const TokenTree& t) { return to_numpy(t.token); }, "[N] int32")
      .def_property_readonly(
          "parent", [](const TokenTree& t) { return to_numpy(t.parent); },
          "[N] int32, -1 for the root")
      .def_property_readonly(
          "depth", [](const TokenTree& t) { return to_numpy(t.depth); },
          "[N] int32, 0 for the root")
      .def_property_readonly(
          "path_logprob", [](const TokenTree& t) { return to_numpy(t.path_logprob); },
          "[N] float32, sum of draft log-probabilities from the root")
      .def_property_readonly(
          "proposal", [](const TokenTree& t) { return std::string(proposal_name(t.proposal)); })
      .def_property_readonly("draws", &draws_list, "Child ids per node, draw order.")
      .def_property_readonly("draft_probs", &dense_law,
                             "[N, V] float32 rows, or None for a tree without draws")
      .def_property_readonly("draft_rows", &sparse_law,
                             R"(The law without its zeros, or None for a tree without draws.

(vocab_size, row_of_node [N] int32, row_offset [R + 1] int64, token [E] int32, prob [E] float32): row
r has the entries from row_offset[r] on, its tokens ascend; row_of_node is -1 for a node that drew
nothing. Rows that no node has may be there.)")
      .def_property_readonly("expected_acceptance", &expected_acceptance,
                             "Sum over drafted nodes of exp(path_logprob) (OPT-Tree, 2024, 3.1).")
      .def_property_readonly("max_depth", &max_depth, "Depth of the deepest node; 0 for a root.")
      .def(
          "with_root",
          [](TokenTree t, int32_t token) {
            t.token[0] = token;
            return t;
          },
          py::arg("token"), "A copy whose root carries `token`.");
  m.def("root_tree", &root_tree, py::arg("token"), "The tree of one root with nothing drafted.");
  m.def(
      "require_sound",
      [](const std::string& who, const TokenTree& tree) { require_sound(who.c_str(), tree); },
      py::arg("who"), py::arg("tree"), "Raises ValueError with the first violation.");
  m.def("check_tree", &check_tree, py::arg("tree"), "Violated invariants; [] for a sound tree.");
}

}  // namespace treespec::python
