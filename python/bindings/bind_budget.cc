// SPDX-License-Identifier: Apache-2.0
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <tuple>

#include "bind_builder.h"
#include "bindings.h"
#include "treespec/budget_rule.h"
#include "treespec/planned_builders.h"
#include "treespec/verifier.h"

namespace treespec::python {
namespace {

namespace py = pybind11;

using Seconds = std::map<int32_t, double>;

CostCurve curve_of(const Seconds& seconds) {
  CostCurve curve;
  for (const auto& [rows, value] : seconds) {
    curve.rows.push_back(rows);
    curve.seconds.push_back(value);
  }
  return curve;
}

std::shared_ptr<CostModel> make_costs(
    const std::vector<std::tuple<int32_t, int32_t, Seconds>>& target, const Seconds& draft_call,
    bool drafts_by_level, double drafted_round_seconds, double plain_round_seconds) {
  auto costs = std::make_shared<CostModel>();
  for (const auto& [context, batch, seconds] : target) {
    costs->target.push_back({context, batch, curve_of(seconds)});
  }
  costs->draft_call = curve_of(draft_call);
  costs->drafts_by_level = drafts_by_level;
  costs->drafted_round_seconds = drafted_round_seconds;
  costs->plain_round_seconds = plain_round_seconds;
  check_costs(*costs);
  return costs;
}

std::vector<int32_t> share(const std::vector<BudgetRule*>& rules,
                           const std::vector<const TokenTree*>& trees) {
  return share_budget(rules, trees);
}

}  // namespace

void bind_budget(py::module_& m) {
  py::class_<CostModel, std::shared_ptr<CostModel>>(m, "CostModel",
                                                    "What the parts of a round cost, in seconds.")
      .def(py::init(&make_costs), py::kw_only(), py::arg("target"), py::arg("draft_call"),
           py::arg("drafts_by_level"), py::arg("drafted_round_seconds"),
           py::arg("plain_round_seconds"),
           "target: (context, batch, {rows: seconds}) of forwards over the rows of all sequences;\n"
           "draft_call: {rows: seconds}, empty when drafting costs nothing. Raises ValueError for\n"
           "numbers that no measurement gives.")
      .def("target_seconds", &CostModel::target_seconds, py::arg("context"), py::arg("batch"),
           py::arg("most_rows"),
           "[most_rows] seconds of a forward over 1, 2, ... rows: the padded envelope.")
      .def("draft_seconds", &CostModel::draft_seconds, py::arg("depth"), py::arg("rows_per_call"),
           py::arg("backlog"), "Seconds of the drafter's calls for a tree.");
  py::class_<RoundPlan>(m, "RoundPlan", "How a round is to be drafted.")
      .def_property_readonly(
          "kind", [](const RoundPlan& plan) { return std::string(round_kind_name(plan.kind)); },
          "plain, chain or tree")
      .def_readonly("node_budget", &RoundPlan::node_budget)
      .def_readonly("max_depth", &RoundPlan::max_depth)
      .def_readonly("threshold", &RoundPlan::threshold,
                    "Expected tokens that pay for one more drafter call.")
      .def_readonly("floor", &RoundPlan::floor, "Path probability that pays for one more row.");
  py::class_<BudgetRule>(m, "BudgetRule",
                         "Decides how large the trees of one sequence are, or that there are none.")
      .def(py::init([](std::shared_ptr<CostModel> costs, const AcceptanceTable& acceptance,
                       int32_t max_nodes, int32_t max_depth, bool ranked_trees, bool chains) {
             return std::make_unique<BudgetRule>(
                 std::move(costs),
                 BudgetOptions{max_nodes, max_depth, ranked_trees, chains, acceptance});
           }),
           py::arg("costs"), py::kw_only(), py::arg("acceptance"), py::arg("max_nodes"),
           py::arg("max_depth") = INT32_MAX, py::arg("ranked_trees") = true,
           py::arg("chains") = true)
      .def("plan", &BudgetRule::plan, py::arg("context"), py::arg("batch"), py::arg("useful_depth"),
           "Before the drafter is asked.")
      .def(
          "learn",
          [](BudgetRule& rule, const TokenTree& tree, const Verdict& verdict) {
            rule.learn(tree, verdict.accepted_nodes);
          },
          py::arg("tree"), py::arg("verdict"), "After verification, once for every plan.")
      .def_property_readonly("price", &BudgetRule::price, "Tokens per second in the long run.")
      .def_property_readonly("reliability", &BudgetRule::reliability,
                             "Accepted tokens over promised ones.")
      .def(
          "advantage",
          [](const BudgetRule& rule, bool chain) {
            return rule.advantage(chain ? RoundKind::kChain : RoundKind::kTree);
          },
          py::kw_only(), py::arg("chain") = false, "Speed over plain decoding, as last seen.");
  py::class_<PlannedBuilders>(m, "PlannedBuilders", "The builders that play the plans of a rule.")
      .def(py::init([](const std::string& name, int32_t max_nodes, const py::kwargs& kwargs) {
             return std::make_unique<PlannedBuilders>(name, builder_options(kwargs), max_nodes);
           }),
           py::arg("name"), py::arg("max_nodes"), "Options as TreeBuilder takes them.")
      .def(
          "at",
          [](const PlannedBuilders& self, const RoundPlan& plan) {
            return NamedBuilder{std::string(self.name(plan)), self.at(plan)};
          },
          py::arg("plan"), "The builder of a round that is not plain.")
      .def_property_readonly("ranked", &PlannedBuilders::ranked,
                             "Whether trees are the best nodes in order of falling score.")
      .def_property_readonly("max_depth", &PlannedBuilders::max_depth, "No deeper tree.")
      .def_property_readonly(
          "proposal",
          [](const PlannedBuilders& self) {
            return std::string(proposal_name(self.tree().proposal()));
          },
          "Of its trees.");
  m.def("share_budget", &share, py::arg("rules"), py::arg("trees"),
        "[B] drafted nodes of each tree that are worth verifying.");
  m.def("beginning_of", &beginning_of, py::arg("tree"), py::arg("num_drafted"),
        "The root and the first drafted nodes of a deterministic tree.");
}

}  // namespace treespec::python
