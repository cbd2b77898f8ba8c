// SPDX-License-Identifier: Apache-2.0
#include "bind_source.h"

#include <algorithm>
#include <type_traits>

#include "bindings.h"
#include "dlpack_view.h"
#include "treespec/candidates.h"
#include "treespec/error.h"

namespace treespec::python {
namespace {

template <class T>
using Dense = py::array_t<T, py::array::c_style | py::array::forcecast>;

/// Anything array-like as NumPy has it; torch tensors in any floating dtype become float32.
template <class T>
py::array plain_array(const py::object& values, const char* name) {
  if constexpr (std::is_same_v<T, int32_t>) return whole_numbers(values, name);
  const bool tensor = py::hasattr(values, "detach");
  const py::object plain = tensor ? values.attr("detach")().attr("float")() : values;
  return py::module_::import("numpy").attr("asarray")(plain);
}

/// A private, contiguous copy with the wanted number of dimensions.
template <class T>
Dense<T> own(const py::object& values, py::ssize_t ndim, const char* name) {
  const auto array = Dense<T>::ensure(plain_array<T>(values, name));
  TREESPEC_CHECK(static_cast<bool>(array), name, " must be numbers");
  TREESPEC_CHECK(array.ndim() == ndim, name, " must have ", ndim, " dimensions, got ",
                 array.ndim());
  return py::cast<Dense<T>>(array.attr("copy")());
}

template <class A, class B>
void same_shape(const A& a, const B& b, const char* names) {
  bool same = a.ndim() == b.ndim();
  for (py::ssize_t d = 0; same && d < a.ndim(); ++d) same = a.shape(d) == b.shape(d);
  TREESPEC_CHECK(same, names, " must have the same shape");
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

PySource marginals_from_logits(const py::object& logits, int32_t width, double temperature) {
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

PySource make_transitions(const py::object& token, const py::object& logprob,
                          const py::object& next) {
  PySource out;
  const auto ids = own<int32_t>(token, 3, "Transitions: token");
  const auto scores = own<float>(logprob, 3, "Transitions: logprob");
  const auto links = own<int32_t>(next, 3, "Transitions: next");
  same_shape(ids, scores, "Transitions: token and logprob");
  same_shape(ids, links, "Transitions: token and next");
  out.kept = {ids, scores, links};
  out.source = std::make_shared<Transitions>(
      ids.data(), scores.data(), links.data(), static_cast<int32_t>(ids.shape(0)),
      static_cast<int32_t>(ids.shape(1)), static_cast<int32_t>(ids.shape(2)));
  return out;
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

token [D, K] int32, logprob [D, K] float32 (natural log, <= 0; -inf pads). Copied.)")
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
log-probability is within 2e-6 of the exact one, ties fall to the lower id. Raises ValueError for
NaN, +inf, or a row without a finite logit.)");
  py::class_<PyTransitions, PySource>(m, "Transitions",
                                      R"(First-order lists of conditional drafters.

token, logprob, next [D, R, K]; next[d, r, k] is the row of depth d + 1 that continues this child,
-1 for a leaf; depth 0 uses row 0 only. Copied.)")
      .def(py::init([](const py::object& t, const py::object& l, const py::object& n) {
             return PyTransitions{make_transitions(t, l, n)};
           }),
           py::arg("token"), py::arg("logprob"), py::arg("next"));
  py::class_<PyTrie, PySource>(m, "Trie", R"(Scored nodes of suffix trees, n-grams and retrieval.

parent [n] (-1 is the root, parents first), token [n], logprob [n] conditional on the parent. Copied.)")
      .def(py::init([](const py::object& p, const py::object& t, const py::object& l) {
             return PyTrie{make_trie(p, t, l)};
           }),
           py::arg("parent"), py::arg("token"), py::arg("logprob"));
}

}  // namespace treespec::python
