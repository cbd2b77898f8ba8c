// SPDX-License-Identifier: Apache-2.0
#include "bind_builder.h"

#include <pybind11/stl.h>

#include <optional>

#include "bind_source.h"
#include "bindings.h"
#include "dense_array.h"
#include "dlpack_view.h"
#include "treespec/error.h"
#include "treespec/tree_builder.h"

namespace treespec::python {
namespace {

/// The frontier as Python sees it: a sequence of nodes that also has array attributes.
struct Frontier {
  std::vector<FrontierNode> nodes;

  py::array_t<int32_t> column(int32_t FrontierNode::* member) const {
    py::array_t<int32_t> out(static_cast<py::ssize_t>(nodes.size()));
    for (size_t i = 0; i < nodes.size(); ++i) out.mutable_data()[i] = nodes[i].*member;
    return out;
  }
};

/// Without `convert` nothing is rounded: integers are what has __index__.
template <class T>
std::optional<T> cast_or_nothing(const py::handle& value, bool convert) {
  py::detail::make_caster<T> caster;
  if (!caster.load(value, convert)) return std::nullopt;
  return py::detail::cast_op<T>(std::move(caster));
}

OptionValue option_value(const std::string& name, const py::handle& value) {
  if (py::isinstance<py::str>(value)) return value.cast<std::string>();
  if (py::isinstance<py::bool_>(value)) {
    throw py::type_error(detail::message(name, ": must be a number, a string or a list, got bool"));
  }
  // A NumPy scalar or 0-d array is a number, whatever else it claims to be.
  const bool list = py::isinstance<py::sequence>(value) && PyObject_Size(value.ptr()) >= 0;
  PyErr_Clear();
  if (!list && PyIndex_Check(value.ptr()) != 0) {
    if (const auto whole = cast_or_nothing<int64_t>(value, false)) return *whole;
  }
  if (!list && PyNumber_Check(value.ptr()) != 0) {
    return py::float_(py::reinterpret_borrow<py::object>(value)).cast<double>();
  }
  const auto text = [&] { return py::repr(value).cast<std::string>(); };
  if (!list) {
    throw py::type_error(
        detail::message(name, ": must be a number, a string or a list, got ", text()));
  }
  if (const auto integers = cast_or_nothing<std::vector<int64_t>>(value, /*convert=*/false))
    return *integers;
  if (const auto row = cast_or_nothing<std::vector<double>>(value, true)) return OptionTable{*row};
  if (const auto table = cast_or_nothing<OptionTable>(value, true)) return *table;
  throw py::type_error(
      detail::message(name, ": must be a list of numbers or of rows of numbers, got ", text()));
}

NamedBuilder make_named(const std::string& name, const py::kwargs& kwargs) {
  return {name, make_builder(name, builder_options(kwargs))};
}

void supply_dense(TreeGrowth& growth, const py::object& rows) {
  const BorrowedArray borrowed = borrow(rows, "expand");
  const RowsView block = rows_view(borrowed, "expand");
  TREESPEC_CHECK(block.dtype == DType::kFloat32, "expand: rows must be float32 log-probabilities");
  std::vector<CandidateRow> candidates;
  for (int64_t i = 0; i < block.num_rows; ++i) {
    candidates.push_back({nullptr, static_cast<const float*>(block.data) + i * block.row_stride,
                          nullptr, static_cast<int32_t>(block.width), false});
  }
  const py::gil_scoped_release release;
  growth.supply(candidates);
}

void supply_lists(TreeGrowth& growth, const py::object& token, const py::object& logprob) {
  const auto ids = dense<int32_t>(token, 2, "supply_lists: token");
  const auto scores = dense<float>(logprob, 2, "supply_lists: logprob");
  same_shape(ids, scores, "supply_lists: token and logprob");
  const py::gil_scoped_release release;
  const RankedLists lists("supply_lists", ids.data(), scores.data(), nullptr, ids.shape(0),
                          static_cast<int32_t>(ids.shape(1)), 0);
  std::vector<CandidateRow> rows;
  for (int64_t i = 0; i < ids.shape(0); ++i) {
    rows.push_back(lists.row(i));
    // Of rows that are not ranked a growth keeps copies: these live for the call alone.
    rows.back().ranked = false;
  }
  growth.supply(rows);
}

std::unique_ptr<TreeGrowth> begin(const NamedBuilder& self, int32_t node_budget, int32_t max_depth,
                                  uint64_t seed, uint32_t sequence_id, uint32_t position) {
  TREESPEC_CHECK(node_budget >= 0, self.name, ": node_budget must be >= 0, got ", node_budget);
  return self.builder->begin(node_budget, max_depth, {seed, sequence_id, position});
}

TokenTree finish(TreeGrowth& growth, int32_t root_token) {
  TokenTree tree = growth.finish();
  tree.token[0] = root_token;
  return tree;
}

TokenTree build(const NamedBuilder& self, const PySource& source, int32_t node_budget,
                int32_t max_depth, uint64_t seed, uint32_t sequence_id, uint32_t position,
                int32_t root_token) {
  check_source(*self.builder, self.name, source.source->kind());
  const int32_t depth = std::min(max_depth, source.source->max_depth());
  // The lock stays held: a source serves one growth at a time, and a table takes microseconds.
  const auto growth = begin(self, node_budget, depth, seed, sequence_id, position);
  while (!growth->frontier().empty()) growth->supply(source.source->rows(growth->frontier()));
  return finish(*growth, root_token);
}

py::tuple scored_lists(const Dense<int32_t>& token, const Dense<float>& logprob,
                       const std::optional<Dense<int32_t>>& next, const py::kwargs& kwargs) {
  same_shape(token, logprob, "score_lists: token and logprob");
  if (next) same_shape(token, *next, "score_lists: token and next");
  TREESPEC_CHECK(token.ndim() >= 1, "score_lists: token must have a dimension at least, got none");
  const std::vector<py::ssize_t> shape(token.shape(), token.shape() + token.ndim());
  Dense<int32_t> scored_token(shape), scored_next(next ? shape : std::vector<py::ssize_t>{0});
  Dense<float> scored_logprob(shape);
  const auto width = static_cast<int32_t>(shape.back());
  score_lists(builder_options(kwargs), token.data(), logprob.data(), next ? next->data() : nullptr,
              width > 0 ? token.size() / width : 0, width, scored_token.mutable_data(),
              scored_logprob.mutable_data(), scored_next.mutable_data());
  return py::make_tuple(scored_token, scored_logprob,
                        next ? py::object(scored_next) : py::object(py::none()));
}

void bind_frontier(py::module_& m) {
  py::class_<FrontierNode>(m, "FrontierNode")
      .def_readonly("index", &FrontierNode::index)
      .def_readonly("parent", &FrontierNode::parent)
      .def_readonly("token", &FrontierNode::token)
      .def_readonly("depth", &FrontierNode::depth);
  py::class_<Frontier>(m, "Frontier", R"(Nodes to expand; a sequence with array attributes.

index: order of first hand-over, the root is 0 and comes first, alone; parent in that numbering.)")
      .def("__len__", [](const Frontier& f) { return f.nodes.size(); })
      .def("__getitem__",
           [](const Frontier& f, py::ssize_t i) {
             const auto n = static_cast<py::ssize_t>(f.nodes.size());
             if (i < 0) i += n;
             if (i < 0 || i >= n) throw py::index_error("Frontier: index out of range");
             return f.nodes[static_cast<size_t>(i)];
           })
      .def_property_readonly("index",
                             [](const Frontier& f) { return f.column(&FrontierNode::index); })
      .def_property_readonly("parent",
                             [](const Frontier& f) { return f.column(&FrontierNode::parent); })
      .def_property_readonly("token",
                             [](const Frontier& f) { return f.column(&FrontierNode::token); })
      .def_property_readonly("depth",
                             [](const Frontier& f) { return f.column(&FrontierNode::depth); });
}

}  // namespace

BuilderOptions builder_options(const py::kwargs& kwargs) {
  BuilderOptions options;
  for (const auto& [key, value] : kwargs) {
    if (value.is_none()) continue;
    const auto option = key.cast<std::string>();
    options.emplace(option, option_value(option, value));
  }
  return options;
}

void bind_builder(py::module_& m) {
  bind_frontier(m);
  py::class_<TreeGrowth>(m, "TreeGrowth", "A tree being grown; asks for rows, takes them.")
      .def(
          "frontier",
          [](const TreeGrowth& g, int32_t root_token) {
            Frontier out{{g.frontier().begin(), g.frontier().end()}};
            for (FrontierNode& node : out.nodes) {
              if (node.depth == 0) node.token = root_token;
            }
            return out;
          },
          py::arg("root_token") = 0, "Nodes whose rows are wanted next; empty when grown.")
      .def("supply", &supply_dense, py::arg("rows"),
           "[len(frontier), V] float32 log-probabilities, one row per frontier node.")
      .def("supply_lists", &supply_lists, py::arg("token"), py::arg("logprob"),
           R"(Candidate lists [len(frontier), K] in place of whole rows, one per frontier node.

token: integers of 32 bits, distinct in a list. logprob: given the node, -inf pads. Raises
ValueError as Marginals does, and for other than one list per node.)")
      .def("finish", &finish, py::arg("root_token") = 0, "The tree, in pop order. Call once.");
  py::class_<NamedBuilder>(m, "TreeBuilder", "A named recipe with its options; may be shared.")
      .def(py::init(&make_named), py::arg("name"))
      .def_readonly("name", &NamedBuilder::name)
      .def_property_readonly(
          "proposal",
          [](const NamedBuilder& b) { return std::string(proposal_name(b.builder->proposal())); })
      .def_property_readonly(
          "makes_chains", [](const NamedBuilder& b) { return b.builder->makes_chains(); },
          "Whether every tree is a chain.")
      .def(
          "check_source_kind",
          [](const NamedBuilder& b, const std::string& kind) {
            for (const SourceKind one : {SourceKind::kMarginals, SourceKind::kTransitions,
                                         SourceKind::kExpander, SourceKind::kTrie}) {
              if (source_name(one) == kind) check_source(*b.builder, b.name, one);
            }
          },
          py::arg("kind"),
          "Raises ValueError, naming the builders that can, when it cannot read it.")
      .def("begin", &begin, py::arg("node_budget"), py::arg("max_depth") = INT32_MAX,
           py::arg("seed") = 0, py::arg("sequence_id") = 0, py::arg("position") = 0)
      .def("build", &build, py::arg("source"), py::arg("node_budget"),
           py::arg("max_depth") = INT32_MAX, py::arg("seed") = 0, py::arg("sequence_id") = 0,
           py::arg("position") = 0, py::arg("root_token") = 0,
           "The whole tree from a source that needs no model.");
  m.def(
      "score_lists", &scored_lists, py::arg("token"), py::arg("logprob"),
      py::arg("next") = py::none(),
      R"(Ranked lists [..., K] as a deterministic builder with these options scores and ranks them.

token and next int32, logprob float32; options: score_temperature, calibration. Returns the three
arrays, the last None without `next`. Lists that break the rules of Marginals are left as they are.)");
  m.def(
      "builder_table",
      [] {
        std::vector<std::pair<std::string, std::string>> rows;
        for (const BuilderInfo& info : builders()) rows.emplace_back(info.name, info.summary);
        return rows;
      },
      "(name, summary) of every builder, in table order.");
}

}  // namespace treespec::python
