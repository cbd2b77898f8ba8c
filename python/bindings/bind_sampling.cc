// SPDX-License-Identifier: Apache-2.0
#include "bind_sampling.h"

#include <pybind11/stl.h>

#include <map>

#include "bindings.h"
#include "treespec/error.h"

namespace treespec::python {
namespace {

using Weights = py::array_t<double, py::array::c_style | py::array::forcecast>;

SamplingParams make_params(double temperature, int32_t top_k, double top_p, double min_p,
                           double repetition_penalty, double presence_penalty,
                           double frequency_penalty, const std::map<int32_t, double>& logit_bias) {
  SamplingParams params{temperature,
                        top_k,
                        top_p,
                        min_p,
                        repetition_penalty,
                        presence_penalty,
                        frequency_penalty,
                        {logit_bias.begin(), logit_bias.end()}};
  check_sampling(params);
  return params;
}

Weights weights_of(const py::object& logits, const SamplingParams& params,
                   const py::object& history_ids, int64_t prompt_length, const py::object& path,
                   const std::optional<AllowedMask>& allowed) {
  const BorrowedArray row = borrow(logits, "logits");
  TREESPEC_CHECK(row.ndim() == 1 && (row.shape[0] <= 1 || row.stride[0] == 1),
                 "logits: must be a contiguous [V], got ", row.shape_text());
  const RowsView view_of_row{row.data, float_dtype(row, "logits"), 1, row.shape[0], row.shape[0]};
  const IntArray history = int_array(history_ids, "history_ids");
  const IntArray path_ids = int_array(path, "path");
  TargetRow law;
  process_logits(view_of_row, 0, params, {view(history), prompt_length}, view(path_ids),
                 allowed_words(allowed, 1, row.shape[0]), {}, law);
  Weights out(static_cast<py::ssize_t>(row.shape[0]));
  law.expand(out.mutable_data());
  return out;
}

ArrayView<const double> values_of(const Weights& values) {
  return {values.data(), static_cast<int64_t>(values.size())};
}

}  // namespace

const uint32_t* allowed_words(const std::optional<AllowedMask>& mask, int64_t num_rows,
                              int64_t vocab_size) {
  if (!mask) return nullptr;
  const int64_t words = (vocab_size + 31) / 32;
  const bool fits = (mask->ndim() == 2 && mask->shape(0) == num_rows && mask->shape(1) == words) ||
                    (mask->ndim() == 1 && num_rows == 1 && mask->shape(0) == words);
  TREESPEC_CHECK(fits, "allowed_tokens: must be uint32 [", num_rows, ", ", words,
                 "], a bitmask per node");
  return mask->data();
}

void bind_sampling(py::module_& m) {
  py::class_<SamplingParams>(m, "RowParams",
                             "How a row of logits becomes a law (see SamplingParams).")
      .def(py::init(&make_params), py::kw_only(), py::arg("temperature") = 1.0,
           py::arg("top_k") = 0, py::arg("top_p") = 1.0, py::arg("min_p") = 0.0,
           py::arg("repetition_penalty") = 1.0, py::arg("presence_penalty") = 0.0,
           py::arg("frequency_penalty") = 0.0, py::arg("logit_bias") = std::map<int32_t, double>{})
      .def_readonly("temperature", &SamplingParams::temperature)
      .def_readonly("top_k", &SamplingParams::top_k)
      .def_readonly("top_p", &SamplingParams::top_p)
      .def_readonly("min_p", &SamplingParams::min_p)
      .def_readonly("repetition_penalty", &SamplingParams::repetition_penalty)
      .def_readonly("presence_penalty", &SamplingParams::presence_penalty)
      .def_readonly("frequency_penalty", &SamplingParams::frequency_penalty)
      .def_readonly("logit_bias", &SamplingParams::logit_bias, "(token, bias), by token.")
      .def_property_readonly("has_penalties", &SamplingParams::has_penalties,
                             "Whether earlier tokens change a row.");
  m.def("process_logits", &weights_of, py::arg("logits"), py::arg("params"), py::arg("history_ids"),
        py::arg("prompt_length"), py::arg("path"), py::arg("allowed") = py::none(),
        "[V] float64 weights exp(score - max), 0 off the support.");
  m.def(
      "sample_at_position",
      [](const Weights& weights, uint64_t seed, uint32_t sequence_id, uint32_t position) {
        const auto size = static_cast<int64_t>(weights.size());
        TargetRow row;
        row.load_weights({weights.data(), DType::kFloat64, 1, size, size}, 0);
        return sample_at_position(row, seed, sequence_id, position);
      },
      py::arg("weights"), py::arg("seed"), py::arg("sequence_id"), py::arg("position"),
      "Winner of the exponential race keyed by position; distributed as the weights.");
  m.def(
      "fixed_sum", [](const Weights& values) { return fixed_sum(values_of(values)); },
      py::arg("values"), "Sum of floor(value * 2^60).");
  m.def(
      "inverse_cdf",
      [](const Weights& values, double u) { return inverse_cdf(values_of(values), u); },
      py::arg("values"), py::arg("u"), "Smallest id whose cumulative weight exceeds u * total.");
}

}  // namespace treespec::python
