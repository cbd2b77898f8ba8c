// SPDX-License-Identifier: Apache-2.0
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings.h"
#include "treespec/growth_map.h"

namespace treespec::python {
namespace {

namespace py = pybind11;

py::array_t<int32_t> as_array(const GrowthMap& map) {
  return py::array_t<int32_t>(static_cast<py::ssize_t>(map.parent.size()), map.parent.data());
}

}  // namespace

void bind_growth_map(py::module_& m) {
  m.def(
      "check_growth_map",
      [](std::vector<int32_t> parent) { check_growth_map("GrowthMap", {std::move(parent)}); },
      py::arg("parent"), "Raises ValueError for a parent that is no earlier node.");
  m.def(
      "optimal_growth_map",
      [](const AcceptanceTable& acceptance, int32_t num_nodes, int32_t max_depth) {
        return as_array(optimal_growth_map(acceptance, num_nodes, max_depth));
      },
      py::arg("acceptance"), py::arg("num_nodes"), py::arg("max_depth") = INT32_MAX,
      "Parents of the best map for the smoothed table, in order of falling value.");
  m.def(
      "optimal_growth_map_dp",
      [](const AcceptanceTable& acceptance, int32_t num_nodes, int32_t max_depth) {
        return as_array(optimal_growth_map_dp(acceptance, num_nodes, max_depth));
      },
      py::arg("acceptance"), py::arg("num_nodes"), py::arg("max_depth") = INT32_MAX,
      "Parents of the best map for the table as it is, in order of depth.");
  m.def(
      "node_acceptance",
      [](std::vector<int32_t> parent, const AcceptanceTable& acceptance) {
        return node_acceptance({std::move(parent)}, acceptance);
      },
      py::arg("parent"), py::arg("acceptance"),
      "[n + 1] probability that each node is accepted, the root first.");
  m.def("non_increasing_fit", &non_increasing_fit, py::arg("values"),
        py::arg("weights") = std::vector<double>{}, "Weighted isotonic regression, falling.");
  m.def("demo_acceptance", &demo_acceptance, "The default table of sequoia.");
  m.def("demo_accuracy", &demo_accuracy, "The default table of medusa_choices.");
}

}  // namespace treespec::python
