// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include "bind_sampling.h"
#include "bindings.h"
#include "treespec/error.h"
#include "treespec/verifier.h"

namespace treespec::python {
namespace {

using Accept = std::optional<std::vector<std::vector<double>>>;
using Sample = std::optional<std::vector<double>>;
using Shape = std::pair<int64_t, int64_t>;

std::string resolve(const std::string& name, const TokenTree& tree, bool greedy) {
  return name == "auto" ? std::string(auto_verifier(tree.proposal, greedy)) : name;
}

/// The draft law: the given rows, else the tree's own.
struct Law {
  BorrowedArray borrowed;
  DraftLaw law;

  Law(const TokenTree& tree, const std::optional<py::object>& draft_probs) : law(tree.draft_probs) {
    if (!draft_probs) return;
    borrowed = borrow(*draft_probs, "draft_probs");
    const RowsView rows = rows_view(borrowed, "draft_probs");
    TREESPEC_CHECK(rows.num_rows == tree.num_nodes(), "draft_probs: shape must be [",
                   tree.num_nodes(), ", V], got ", borrowed.shape_text());
    TREESPEC_CHECK(rows.dtype == DType::kFloat32 || rows.dtype == DType::kFloat64,
                   "draft_probs: dtype must be float32 or float64");
    law = DraftLaw(rows);
  }
};

Verdict verify_probs(const TokenTree& tree, const py::object& target_probs,
                     const std::optional<py::object>& draft_probs, const std::string& verifier,
                     uint64_t seed, uint32_t sequence_id, uint32_t position, const Accept& accept,
                     const Sample& sample, const Accept& select, bool lossy) {
  const BorrowedArray borrowed = borrow(target_probs, "target_probs");
  const Law law(tree, draft_probs);
  const RowsView probs = rows_view(borrowed, "target_probs");
  TREESPEC_CHECK(accept.has_value() == sample.has_value(),
                 "coins: accept and sample must be given together");
  const RoundKey key{seed, sequence_id, position};
  const Coins coins =
      accept ? Coins(key, &*accept, &*sample, select ? &*select : nullptr) : Coins(key);
  const py::gil_scoped_release release;
  ProbabilityRows rows(probs, tree.num_nodes());
  return verify(resolve(verifier, tree, false), tree, rows, law.law, coins, lossy);
}

Verdict verify_logit_rows(const TokenTree& tree, const py::object& target_logits,
                          const std::optional<py::object>& draft_probs,
                          const SamplingParams& params, const std::string& verifier,
                          const py::object& prefix_ids, int64_t prompt_length,
                          const std::optional<AllowedMask>& allowed, uint64_t seed,
                          uint32_t sequence_id, uint32_t position, bool lossy) {
  const BorrowedArray borrowed = borrow(target_logits, "target_logits");
  const Law law(tree, draft_probs);
  const RowsView logits = rows_view(borrowed, "target_logits");
  const IntArray history = int_array(prefix_ids, "prefix_ids");
  const uint32_t* words = allowed_words(allowed, tree.num_nodes(), logits.width);
  const py::gil_scoped_release release;
  LogitRows rows(logits, tree, params, {view(history), prompt_length}, words);
  return verify(resolve(verifier, tree, params.temperature == 0.0), tree, rows, law.law,
                Coins({seed, sequence_id, position}), lossy);
}

/// Throws for rows of a tree's own law that are none.
void check_rows(const DraftLaw& law, const TokenTree& tree) {
  std::vector<int32_t> token;
  std::vector<double> prob;
  for (int32_t i = 0; i < tree.num_nodes(); ++i) {
    if (!tree.draws(i).empty()) law.load(i, token, prob);
  }
}

/// Throws for what verify_logits refuses without looking at a logit. Shapes are `[rows, V]`;
/// without that of draft_probs the law is the tree's own, whose rows are checked.
void check_logit_round(const TokenTree& tree, const Shape& target_logits,
                       const std::optional<Shape>& draft_probs, const SamplingParams& params,
                       const std::string& verifier, const py::object& prefix_ids,
                       int64_t prompt_length, bool lossy) {
  const auto [num_rows, width] = target_logits;
  const IntArray history = int_array(prefix_ids, "prefix_ids");
  const RowsView elsewhere{nullptr, DType::kFloat32, num_rows, width, width};
  const LogitRows rows(elsewhere, tree, params, {view(history), prompt_length}, nullptr);
  for (const auto& [token, bias] : params.logit_bias) check_biased_token(token, width);
  TREESPEC_CHECK(!draft_probs || draft_probs->first == tree.num_nodes(),
                 "draft_probs: shape must be [", tree.num_nodes(), ", V], got [",
                 draft_probs->first, ", ", draft_probs->second, "]");
  const DraftLaw own(tree.draft_probs);
  const int64_t law_width = draft_probs ? draft_probs->second : own.vocab_size();
  const std::string name = resolve(verifier, tree, params.temperature == 0.0);
  check_round(name, tree, rows.vocab_size(), static_cast<int32_t>(law_width), lossy);
  if (!draft_probs && verifier_info(name).needs_draft_law) check_rows(own, tree);
}

/// A verdict that was found elsewhere.
Verdict verdict_on(const TokenTree& tree, std::vector<int32_t> accepted_nodes, int32_t next_token) {
  Verdict verdict;
  for (const int32_t node : accepted_nodes) {
    TREESPEC_CHECK(node >= 0 && node < tree.num_nodes(), "Verdict: accepted_nodes must be in [0, ",
                   tree.num_nodes(), "), got ", node);
    verdict.tokens.push_back(tree.token[node]);
  }
  verdict.tokens.push_back(next_token);
  verdict.accepted_nodes = std::move(accepted_nodes);
  verdict.next_token = next_token;
  return verdict;
}

py::array_t<double> node_probability_of(const TokenTree& tree, const py::object& target_probs,
                                        const std::optional<py::object>& draft_probs,
                                        const std::string& verifier, bool lossy) {
  const BorrowedArray borrowed = borrow(target_probs, "target_probs");
  const Law law(tree, draft_probs);
  const RowsView probs = rows_view(borrowed, "target_probs");
  std::vector<double> reached;
  {
    const py::gil_scoped_release release;
    ProbabilityRows rows(probs, tree.num_nodes());
    reached = node_probability(resolve(verifier, tree, false), tree, rows, law.law, lossy);
  }
  return to_numpy(reached);
}

}  // namespace

void bind_verifier(py::module_& m) {
  py::class_<Verdict>(m, "Verdict", "What a round decided.")
      .def(py::init(&verdict_on), py::arg("tree"), py::arg("accepted_nodes"), py::arg("next_token"),
           "One that was found on a device.")
      .def_property_readonly(
          "accepted_nodes", [](const Verdict& v) { return to_numpy(v.accepted_nodes); },
          "[num_accepted] int32 node ids, root excluded, top down")
      .def_property_readonly("num_accepted", &Verdict::num_accepted)
      .def_readonly("next_token", &Verdict::next_token, "Correction or bonus token; the next root.")
      .def_property_readonly(
          "tokens", [](const Verdict& v) { return to_numpy(v.tokens); },
          "[num_accepted + 1] int32: the path's tokens and next_token")
      .def("__repr__", [](const Verdict& v) {
        return detail::message("<Verdict ", v.num_accepted(), " accepted, next ", v.next_token,
                               ">");
      });
  m.def("verify", &verify_probs, py::arg("tree"), py::arg("target_probs"), py::arg("draft_probs"),
        py::arg("verifier"), py::arg("seed"), py::arg("sequence_id"), py::arg("position"),
        py::arg("accept") = py::none(), py::arg("sample") = py::none(),
        py::arg("select") = py::none(), py::arg("lossy") = false);
  m.def("node_probability", &node_probability_of, py::arg("tree"), py::arg("target_probs"),
        py::arg("draft_probs"), py::arg("verifier"), py::arg("lossy") = false,
        "[N] float64: probability over the coins that each node of this tree is accepted.");
  m.def(
      "alpha_star",
      [](const std::vector<double>& target, const std::vector<double>& draft, int32_t num_draws,
         const std::string& proposal) {
        return alpha_star(target, draft, num_draws, parse_proposal(proposal));
      },
      py::arg("target"), py::arg("draft"), py::arg("num_draws"), py::arg("proposal"));
  m.def("verify_logits", &verify_logit_rows, py::arg("tree"), py::arg("target_logits"),
        py::arg("draft_probs"), py::arg("params"), py::arg("verifier"), py::arg("prefix_ids"),
        py::arg("prompt_length"), py::arg("allowed"), py::arg("seed"), py::arg("sequence_id"),
        py::arg("position"), py::arg("lossy") = false);
  m.def("check_logit_round", &check_logit_round, py::arg("tree"), py::arg("target_logits"),
        py::arg("draft_probs"), py::arg("params"), py::arg("verifier"), py::arg("prefix_ids"),
        py::arg("prompt_length"), py::arg("lossy") = false,
        R"(Raises for what verify_logits refuses without looking at a logit.

target_logits, draft_probs: [rows, V], the shapes of arrays that are elsewhere. Without draft_probs
the law is the tree's own, whose rows are checked.)");
  m.def(
      "check_verifier",
      [](const std::string& name, const std::string& proposal, bool chain, bool lossy) {
        check_verifier(verifier_info(name), parse_proposal(proposal), chain, lossy);
      },
      py::arg("verifier"), py::arg("proposal"), py::arg("chain"), py::arg("lossy") = false,
      "Raises ValueError for a pair that would be biased; names the verifiers that fit.");
  m.def(
      "auto_verifier",
      [](const std::string& proposal, bool greedy) {
        return std::string(auto_verifier(parse_proposal(proposal), greedy));
      },
      py::arg("proposal"), py::arg("greedy"), "What verifier=\"auto\" stands for.");
  m.def(
      "needs_draft_law",
      [](const std::string& name) { return verifier_info(name).needs_draft_law; },
      py::arg("verifier"), "Whether it reads the laws that tokens were drawn from.");
  m.def(
      "verifier_table",
      [] {
        std::vector<std::pair<std::string, std::string>> rows;
        for (const VerifierInfo& info : verifiers()) rows.emplace_back(info.name, info.summary);
        return rows;
      },
      "(name, summary) of every verifier, in table order.");
}

}  // namespace treespec::python
