// SPDX-License-Identifier: Apache-2.0
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "bindings.h"
#include "treespec/drafts.h"
#include "treespec/error.h"

namespace py = pybind11;

namespace {

using treespec::NgramIndex;
using treespec::NgramOptions;
using treespec::ScoredTrie;
using treespec::SuffixIndex;
using treespec::SuffixOptions;
using Ids = py::array_t<int32_t, py::array::c_style>;

/// Integer ids of any width as contiguous int32; nothing wraps.
Ids as_ids(const py::object& token_ids, const char* who) {
  const py::module_ numpy = py::module_::import("numpy");
  const py::array array = numpy.attr("asarray")(token_ids);
  TREESPEC_CHECK(array.ndim() == 1, who, ": token_ids must have 1 dimension, got ", array.ndim());
  if (array.size() == 0) return Ids(0);
  TREESPEC_CHECK(array.dtype().kind() == 'i' || array.dtype().kind() == 'u', who,
                 ": token_ids must be integers, got ", std::string(py::str(array.dtype())));
  const auto outside = [&](const char* operation, int64_t bound) {
    return array.attr(operation)(bound).attr("any")().cast<bool>();
  };
  TREESPEC_CHECK(!outside("__lt__", 0) && !outside("__gt__", INT32_MAX), who,
                 ": token_ids must be in [0, 2^31), got ",
                 std::string(py::str(array.attr("min")())), " to ",
                 std::string(py::str(array.attr("max")())));
  return Ids::ensure(array.attr("astype")("int32"));
}

template <class Index>
void append(Index& index, const py::object& token_ids, const char* who) {
  const Ids ids = as_ids(token_ids, who);
  const treespec::ArrayView<const int32_t> view(ids.data(), ids.size());
  py::gil_scoped_release release;
  index.append(view);
}

template <class T>
py::array_t<T> to_numpy(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

template <class Index>
py::tuple draft(const Index& index, int32_t max_depth, int32_t node_budget) {
  ScoredTrie trie;
  {
    py::gil_scoped_release release;
    trie = index.draft(max_depth, node_budget);
  }
  return py::make_tuple(to_numpy(trie.parent), to_numpy(trie.token), to_numpy(trie.logprob));
}

constexpr const char* kAppendDoc =
    "Add [n] committed tokens at the end of the text. Raises ValueError for ids outside [0, 2^31), "
    "adding nothing.";
constexpr const char* kDraftDoc =
    "(parent, token, logprob), the arguments of `Trie`: at most `node_budget` nodes of depth <= "
    "`max_depth`, most probable first.";

}  // namespace

void bind_drafts(py::module_& m) {
  const NgramOptions ngram;
  py::class_<NgramIndex>(
      m, "NgramIndex",
      R"(Prompt lookup: the longest n-gram at the end of the text that occurred before.

P(child | node) = c(child) / (c(node) + kappa) over the latest `max_hits` occurrences; `recency` < 1
weighs an occurrence by recency^(age / 100 tokens). One index per sequence and thread.)")
      .def(py::init([](int32_t max_ngram, int32_t min_ngram, double kappa, int32_t max_hits,
                       double recency) {
             return NgramIndex({max_ngram, min_ngram, kappa, max_hits, recency});
           }),
           py::arg("max_ngram") = ngram.max_ngram, py::kw_only(),
           py::arg("min_ngram") = ngram.min_ngram, py::arg("kappa") = ngram.kappa,
           py::arg("max_hits") = ngram.max_hits, py::arg("recency") = ngram.recency)
      .def(
          "append",
          [](NgramIndex& index, const py::object& ids) { append(index, ids, "NgramIndex.append"); },
          py::arg("token_ids"), kAppendDoc)
      .def("draft", &draft<NgramIndex>, py::arg("max_depth"), py::arg("node_budget"), kDraftDoc)
      .def("clear", &NgramIndex::clear, "Forget the text.")
      .def_property_readonly("size", &NgramIndex::size, "Tokens in the text.");

  const SuffixOptions suffix;
  py::class_<SuffixIndex>(m, "SuffixIndex",
                          R"(Suffix automaton over the text, with exact counts.

Tries every length at which the end of the text occurred before, and keeps the draft of the largest
sum of node probabilities; P(child | node) = c(child) / (c(node) + kappa / context length). A match
of length p drafts at most alpha * p + beta nodes, none below `min_token_prob` (path probability).
One index per sequence and thread.)")
      .def(py::init([](int32_t max_match, int32_t max_depth, double alpha, double beta,
                       double min_token_prob, double kappa, int32_t max_children) {
             return SuffixIndex(
                 {max_match, max_depth, alpha, beta, min_token_prob, kappa, max_children});
           }),
           py::kw_only(), py::arg("max_match") = suffix.max_match,
           py::arg("max_depth") = suffix.max_depth, py::arg("alpha") = suffix.alpha,
           py::arg("beta") = suffix.beta, py::arg("min_token_prob") = suffix.min_token_prob,
           py::arg("kappa") = suffix.kappa, py::arg("max_children") = suffix.max_children)
      .def(
          "append",
          [](SuffixIndex& index, const py::object& ids) {
            append(index, ids, "SuffixIndex.append");
          },
          py::arg("token_ids"), kAppendDoc)
      .def("draft", &draft<SuffixIndex>, py::arg("max_depth"), py::arg("node_budget"), kDraftDoc)
      .def("clear", &SuffixIndex::clear, "Forget the text.")
      .def(
          "count",
          [](const SuffixIndex& index, const py::object& ids) {
            const Ids tokens = as_ids(ids, "SuffixIndex.count");
            return index.count({tokens.data(), tokens.size()});
          },
          py::arg("token_ids"),
          "Occurrences of a string of at most max_match + max_depth tokens in the text.")
      .def_property_readonly(
          "match_length", &SuffixIndex::match_length,
          "Longest suffix of the text that also ends earlier, at most max_match.")
      .def_property_readonly("size", &SuffixIndex::size, "Tokens in the text.");
}
