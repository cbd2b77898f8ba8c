// SPDX-License-Identifier: Apache-2.0
#include "bind_source.h"

#include <algorithm>

#include "bindings.h"
#include "dense_array.h"
#include "dlpack_view.h"
#include "treespec/candidates.h"
#include "treespec/error.h"

namespace treespec::python {
namespace {

/// A private copy of it.
template <class T>
Dense<T> own(const py::object& values, py::ssize_t ndim, const char* name) {
  return py::cast<Dense<T>>(dense<T>(values, ndim, name).attr("copy")());
}

PySource make_marginals(const py::object& token, const py::object& logprob) {
  PySource out;
  const auto ids = own<int32_t>(token, 2, "Marginals: token");
  const auto scores = own<float>(logprob, 2, "Marginals: logprob");
  same_shape(ids, scores, "Marginals: token and logprob");
  out.kept = {ids, scores};
  out.source =
      std::make_shared<Marginals>(ids.data(), scores.data(), static_cast<int32_t>(ids.shape(0)),
                                  static_cast<int32_t>(ids.shape(1)));
  return out;
}

PySource marginals_on_gpu(const py::object& logits, int32_t width, double temperature) {
  const py::tuple lists = py::module_::import("treespec.device.host_rows")
                              .attr("rank_logits")(logits, width, temperature);
  return make_marginals(lists[0], lists[1]);
}

PySource marginals_from_logits(const py::object& logits, int32_t width, double temperature) {
  if (in_cuda_memory(logits)) return marginals_on_gpu(logits, width, temperature);
  const BorrowedArray borrowed = borrow(logits, "logits");
  const RowsView rows = rows_view(borrowed, "logits");
  TREESPEC_CHECK(width >= 1, "Marginals: width must be >= 1, got ", width);
  const py::ssize_t kept = std::max<py::ssize_t>(std::min<py::ssize_t>(width, rows.width), 1);
  Dense<int32_t> token({static_cast<py::ssize_t>(rows.num_rows), kept});
  Dense<float> logprob({static_cast<py::ssize_t>(rows.num_rows), kept});
  {
    int32_t* const ids = token.mutable_data();
    float* const scores = logprob.mutable_data();
    const py::gil_scoped_release release;
    rank_candidates(rows, static_cast<int32_t>(kept), temperature, ids, scores);
  }
  PySource out;
  out.kept = {token, logprob};
  out.source =
      std::make_shared<Marginals>(token.data(), logprob.data(), static_cast<int32_t>(rows.num_rows),
                                  static_cast<int32_t>(kept));
  return out;
}

PySource transitions_of(const Dense<int32_t>& token, const Dense<float>& logprob,
                        const Dense<int32_t>& next) {
  PySource out;
  out.kept = {token, logprob, next};
  out.source = std::make_shared<Transitions>(
      token.data(), logprob.data(), next.data(), static_cast<int32_t>(token.shape(0)),
      static_cast<int32_t>(token.shape(1)), static_cast<int32_t>(token.shape(2)));
  return out;
}

PySource make_transitions(const py::object& token, const py::object& logprob,
                          const py::object& next) {
  const auto ids = own<int32_t>(token, 3, "Transitions: token");
  const auto scores = own<float>(logprob, 3, "Transitions: logprob");
  const auto links = own<int32_t>(next, 3, "Transitions: next");
  same_shape(ids, scores, "Transitions: token and logprob");
  same_shape(ids, links, "Transitions: token and next");
  return transitions_of(ids, scores, links);
}

PySource linked_transitions(const py::object& token, const py::object& logprob,
                            const py::object& owner) {
  const auto ids = dense<int32_t>(token, 2, "Transitions: token");
  const auto scores = dense<float>(logprob, 2, "Transitions: logprob");
  const auto owners = dense<int32_t>(owner, 2, "Transitions: owner");
  same_shape(ids, scores, "Transitions: token and logprob");
  const py::ssize_t levels = owners.shape(0), rows = owners.shape(1);
  TREESPEC_CHECK(rows >= 1 || levels == 0,
                 "Transitions: owner must be [D - 1, R] with R >= 1, got [", levels, ", 0]");
  const py::ssize_t num_lists = 1 + levels * rows;
  TREESPEC_CHECK(ids.shape(0) == num_lists,
                 "Transitions: token must have 1 + (D - 1) * R = ", num_lists,
                 " lists for an owner of [", levels, ", ", rows, "], got ", ids.shape(0));
  const std::vector<py::ssize_t> shape{levels + 1, std::max<py::ssize_t>(rows, 1), ids.shape(1)};
  Dense<int32_t> linked_token(shape), next(shape);
  Dense<float> linked_logprob(shape);
  link_transitions(ids.data(), scores.data(), owners.data(), static_cast<int32_t>(shape[0]),
                   static_cast<int32_t>(shape[1]), static_cast<int32_t>(shape[2]),
                   linked_token.mutable_data(), linked_logprob.mutable_data(), next.mutable_data());
  return transitions_of(linked_token, linked_logprob, next);
}

PySource make_trie(const py::object& parent, const py::object& token, const py::object& logprob) {
  PySource out;
  const auto parents = own<int32_t>(parent, 1, "Trie: parent");
  const auto ids = own<int32_t>(token, 1, "Trie: token");
  const auto scores = own<float>(logprob, 1, "Trie: logprob");
  out.kept = {parents, ids, scores};
  const auto length = [](const auto& a) { return static_cast<int64_t>(a.size()); };
  out.source = std::make_shared<Trie>(ArrayView<const int32_t>(parents.data(), length(parents)),
                                      ArrayView<const int32_t>(ids.data(), length(ids)),
                                      ArrayView<const float>(scores.data(), length(scores)));
  return out;
}

struct PyMarginals : PySource {};
struct PyTransitions : PySource {};
struct PyTrie : PySource {};

}  // namespace

void bind_source(py::module_& m) {
  py::class_<PySource>(m, "CandidateSource", "What a drafter hands to a tree builder.")
      .def_property_readonly(
          "kind", [](const PySource& s) { return std::string(source_name(s.source->kind())); })
      .def_property_readonly("max_depth", [](const PySource& s) { return s.source->max_depth(); })
      .def_property_readonly(
          "arrays", [](const PySource& s) { return s.kept; },
          "The arrays it was made from, in order.");
  py::class_<PyMarginals, PySource>(m, "Marginals", R"(Depth-wise lists of one-pass drafters.

token [D, K] int32, logprob [D, K] float32 (natural log, <= 0; -inf pads). Copied, from CUDA memory,
too.)")
      .def(py::init([](const py::object& t, const py::object& l) {
             return PyMarginals{make_marginals(t, l)};
           }),
           py::arg("token"), py::arg("logprob"))
      .def_static(
          "from_logits",
          [](const py::object& logits, int32_t width, double temperature) {
            return PyMarginals{marginals_from_logits(logits, width, temperature)};
          },
          py::arg("logits"), py::arg("width") = 64, py::kw_only(), py::arg("temperature") = 1.0,
          R"(The `width` likeliest tokens of every row under softmax(logits / temperature).

logits [D, V], float32, float16, bfloat16 or float64, not copied. One pass over memory; a
log-probability is within 2e-6 of the exact one, ties fall to the lower id. Logits in CUDA memory
(not float64; V up to 2^18, width up to 1024) are ranked there, bit for bit the same, and the lists
are copied. Raises ValueError for NaN, +inf, or a row without a finite logit, NotImplementedError
for what a GPU does not rank.)");
  py::class_<PyTransitions, PySource>(m, "Transitions",
                                      R"(First-order lists of conditional drafters.

token, logprob, next [D, R, K]; next[d, r, k] is the row of depth d + 1 that continues this child,
-1 for a leaf; depth 0 uses row 0 only. Copied, from CUDA memory, too.)")
      .def(py::init([](const py::object& t, const py::object& l, const py::object& n) {
             return PyTransitions{make_transitions(t, l, n)};
           }),
           py::arg("token"), py::arg("logprob"), py::arg("next"))
      .def_static(
          "linked",
          [](const py::object& token, const py::object& logprob, const py::object& owner) {
            return PyTransitions{linked_transitions(token, logprob, owner)};
          },
          py::arg("token"), py::arg("logprob"), py::arg("owner"),
          R"(Finds the links of a drafter that conditions on the token before, and on nothing earlier.

token, logprob [1 + (D - 1) * R, K]: the root's list, then the R lists of each further depth;
owner [D - 1, R]: list r of depth d + 1 stands below the nodes whose token is owner[d, r], below
none if that is negative. A candidate goes on at the first list that its token owns; without one it
is a leaf. D = 1 takes an owner of [0, R]. Integers of 32 bits, logprob as for Transitions; copied.
`arrays` are token, logprob and next [D, R, K], depth 0 padded with lists that nobody reads. Raises
ValueError for shapes that do not fit, and for what Transitions refuses.

Source: the drafter of Rheinboldt, Berdoz, Wattenhofer, "TreeFlash: Parallel AR-Approximation for
Faster Speculative Decoding", 2026, arXiv 2606.03819.)");
  py::class_<PyTrie, PySource>(m, "Trie", R"(Scored nodes of suffix trees, n-grams and retrieval.

parent [n] (-1 is the root, parents first), token [n], logprob [n] conditional on the parent. Copied.)")
      .def(py::init([](const py::object& p, const py::object& t, const py::object& l) {
             return PyTrie{make_trie(p, t, l)};
           }),
           py::arg("parent"), py::arg("token"), py::arg("logprob"));
}

}  // namespace treespec::python
