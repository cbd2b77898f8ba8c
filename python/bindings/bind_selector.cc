// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include <algorithm>
#include <array>

#include "bindings.h"
#include "dlpack_view.h"
#include "selector_sizes.h"
#include "treespec/error.h"
#include "treespec/sampling.h"
#include "treespec/selector.h"

namespace treespec::python {
namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Shapes = std::vector<std::array<int32_t, 3>>;

/// One contiguous row.
RowsView row_view(const BorrowedArray& row, const char* name) {
  TREESPEC_CHECK(row.ndim() == 1 && (row.shape[0] <= 1 || row.stride[0] == 1), name,
                 ": must be a contiguous [V], got ", row.shape_text());
  return {row.data, float_dtype(row, name), 1, row.shape[0], row.shape[0]};
}

RootScalars scalars_of(const py::object& target_logits, const SamplingParams& params,
                       const py::object& history_ids, int64_t prompt_length,
                       const py::object& draft_logits, const py::object& root_logits,
                       double draft_temperature, int32_t draft_top_k, double draft_top_p) {
  const BorrowedArray target = borrow(target_logits, "target_logits");
  const BorrowedArray draft = borrow(draft_logits, "draft_logits");
  const BorrowedArray root = borrow(root_logits, "root_logits");
  const IntArray history = int_array(history_ids, "history_ids");
  const RowsView target_row = row_view(target, "target_logits");
  RowsView draft_row = row_view(draft, "draft_logits"), root_row = row_view(root, "root_logits");
  // A drafter's surplus ids are no tokens of the target.
  draft_row.width = std::min(draft_row.width, target_row.width);
  root_row.width = std::min(root_row.width, target_row.width);
  const SamplingParams draft_params{
      draft_temperature, draft_top_k, draft_top_p, 0.0, 1.0, 0.0, 0.0, {}};
  check_sampling(draft_params);
  const py::gil_scoped_release release;
  static thread_local TargetRow p, q, r;
  process_logits(target_row, 0, params, {view(history), prompt_length}, {}, nullptr, {}, p);
  process_logits(draft_row, 0, draft_params, {}, {}, nullptr, {}, q);
  process_logits(root_row, 0, draft_params, {}, {}, nullptr, {}, r);
  return root_scalars(law_features(p, q, r), history.size(), params);
}

DelayedSelector make_selector(const std::vector<int32_t>& state_widths, int32_t projection_width,
                              int32_t num_scalars, const std::vector<int32_t>& layer_widths,
                              const Floats& parameters, const Shapes& shapes) {
  std::vector<DelayedShape> own;
  for (const auto& [num_paths, trunk, branch] : shapes) own.push_back({num_paths, trunk, branch});
  return {selector_sizes(state_widths, projection_width, num_scalars, layer_widths),
          {parameters.data(), parameters.data() + parameters.size()},
          std::move(own)};
}

/// Inputs of one sequence, checked against the sizes; keeps float32 copies where needed.
struct Inputs {
  std::vector<Floats> held;
  std::vector<const float*> states;

  Inputs(const SelectorSizes& sizes, const std::vector<Floats>& given, int64_t num_scalars)
      : held(given) {
    TREESPEC_CHECK(static_cast<int32_t>(given.size()) == sizes.num_states,
                   "DelayedSelector: states must be ", sizes.num_states, " rows, got ",
                   given.size());
    for (int32_t s = 0; s < sizes.num_states; ++s) {
      const Floats& state = given[static_cast<size_t>(s)];
      TREESPEC_CHECK(state.ndim() == 1 && state.size() == sizes.state_width[s],
                     "DelayedSelector: state ", s, " must have ", sizes.state_width[s],
                     " numbers, got ", state.size());
      states.push_back(state.data());
    }
    TREESPEC_CHECK(num_scalars == sizes.num_scalars, "DelayedSelector: scalars must be ",
                   sizes.num_scalars, " numbers, got ", num_scalars);
  }
};

}  // namespace

void bind_selector(py::module_& m) {
  py::class_<DelayedSelector>(m, "DelayedSelector",
                              "The network that scores (K, L1, L2) trees; selector.h.")
      .def(py::init(&make_selector), py::kw_only(), py::arg("state_widths"),
           py::arg("projection_width"), py::arg("num_scalars"), py::arg("layer_widths"),
           py::arg("parameters"), py::arg("shapes"))
      .def(
          "score",
          [](const DelayedSelector& self, const std::vector<Floats>& states,
             const Floats& scalars) {
            const Inputs inputs(self.sizes(), states, scalars.size());
            std::vector<float> scores(self.shapes().size());
            self.score(inputs.states.data(), scalars.data(), scores.data());
            return to_numpy(scores);
          },
          py::arg("states"), py::arg("scalars"), "[num_shapes] float32")
      .def(
          "choose",
          [](const DelayedSelector& self, const std::vector<Floats>& states, const Floats& scalars,
             int32_t node_budget, int32_t max_depth) {
            const Inputs inputs(self.sizes(), states, scalars.size());
            return self.choose(inputs.states.data(), scalars.data(), node_budget, max_depth);
          },
          py::arg("states"), py::arg("scalars"), py::arg("node_budget"), py::arg("max_depth"),
          "Place of the best shape that fits, the first among equals.")
      .def(
          "choose_at_root",
          [](const DelayedSelector& self, const std::vector<Floats>& states, int32_t node_budget,
             int32_t max_depth, const py::object& target_logits, const SamplingParams& params,
             const py::object& history_ids, int64_t prompt_length, const py::object& draft_logits,
             const py::object& root_logits, double draft_temperature, int32_t draft_top_k,
             double draft_top_p) {
            const RootScalars scalars =
                scalars_of(target_logits, params, history_ids, prompt_length, draft_logits,
                           root_logits, draft_temperature, draft_top_k, draft_top_p);
            const Inputs inputs(self.sizes(), states, static_cast<int64_t>(scalars.size()));
            return self.choose(inputs.states.data(), scalars.data(), node_budget, max_depth);
          },
          py::arg("states"), py::arg("node_budget"), py::arg("max_depth"), py::arg("target_logits"),
          py::arg("params"), py::arg("history_ids"), py::arg("prompt_length"),
          py::arg("draft_logits"), py::arg("root_logits"), py::arg("draft_temperature"),
          py::arg("draft_top_k"), py::arg("draft_top_p"),
          "choose() with the numbers of root_scalars(), in one call for a round.");
  m.def(
      "root_scalars",
      [](const py::object& target_logits, const SamplingParams& params,
         const py::object& history_ids, int64_t prompt_length, const py::object& draft_logits,
         const py::object& root_logits, double draft_temperature, int32_t draft_top_k,
         double draft_top_p) {
        const RootScalars found =
            scalars_of(target_logits, params, history_ids, prompt_length, draft_logits, root_logits,
                       draft_temperature, draft_top_k, draft_top_p);
        return Floats(static_cast<py::ssize_t>(found.size()), found.data());
      },
      py::arg("target_logits"), py::arg("params"), py::arg("history_ids"), py::arg("prompt_length"),
      py::arg("draft_logits"), py::arg("root_logits"), py::arg("draft_temperature") = 1.0,
      py::arg("draft_top_k") = 0, py::arg("draft_top_p") = 1.0,
      R"(What a selector reads beside hidden states: [9] float32.

H(p), H(q), H(q_root), KL(p || q), KL(q || p), ||p - q||_1, the logarithm of the history's length,
temperature and top-p: p is the processed target row after the history, q and q_root are the drafter's
before and after the root at its own temperature and truncation.)");
}

}  // namespace treespec::python
