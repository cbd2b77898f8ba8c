// SPDX-License-Identifier: Apache-2.0
#include "ops.h"
#include "structs.h"
#include "treespec/device/verify.h"

namespace treespec::python::device_ops {
namespace {

/// Rows of a law: sparse ones have `token`, entries in one run; dense ones are `[rows, V]`.
device::DraftLaw law_of(DeviceCall& call, const py::object& law) {
  device::DraftLaw out;
  if (law.is_none()) return out;
  out.row_of_node = call.field<const int32_t>("law", law, "row_of_node", "BM");
  out.token = call.optional_field<const int32_t>("law", law, "token", "E");
  if (out.token == nullptr) {
    out.prob = call.field<const float>("law", law, "prob", "XZ");
    out.vocab_size = call.size('Z');
    out.row_stride = out.vocab_size;
    return out;
  }
  out.prob = call.field<const float>("law", law, "prob", "E");
  out.row_offset = call.field<const int64_t>("law", law, "row_offset", "J");
  out.vocab_size = attribute_or(law, "vocab_size", 0);
  out.max_support = attribute_or(law, "max_support", 0);
  return out;
}

device::VerifyInput input_of(DeviceCall& call, const py::object& input) {
  device::VerifyInput out;
  out.trees = drawn_trees(call, input.attr("trees"));
  out.proposal = parse_proposal(input.attr("proposal").cast<std::string>());
  out.logits = rows_of(call, input.attr("logits"), "BMV");
  out.law = law_of(call, py::getattr(input, "law", py::none()));
  out.sampling = sampling_of(call, "input.sampling", input.attr("sampling"));
  out.changes = changes_of(call, py::getattr(input, "changes", py::none()), out.logits.width);
  out.seed = call.field<const uint64_t>("input", input, "seed", "B");
  out.sequence_id = call.field<const uint32_t>("input", input, "sequence_id", "B");
  out.position = call.field<const int32_t>("input", input, "position", "B");
  out.lossy = attribute_or(input, "lossy", out.lossy);
  return out;
}

device::Verdicts verdicts_of(DeviceCall& call, const py::object& verdicts) {
  device::Verdicts out;
  out.nodes = call.field<int32_t>("verdicts", verdicts, "nodes", "BC");
  out.num_accepted = call.field<int32_t>("verdicts", verdicts, "num_accepted", "B");
  out.next_token = call.field<int32_t>("verdicts", verdicts, "next_token", "B");
  out.max_depth = call.size('C') - 1;
  return out;
}

size_t workspace_bytes(const std::string& verifier, const py::object& input,
                       const py::object& verdicts) {
  DeviceCall call("verify_workspace_bytes");
  const device::VerifyInput from = input_of(call, input);
  return device::verify_workspace_bytes(verifier, from, verdicts_of(call, verdicts));
}

void verify(uintptr_t stream, const std::string& verifier, const py::object& input,
            const py::object& workspace, const py::object& verdicts, const py::object& status) {
  DeviceCall call("verify");
  const device::VerifyInput from = input_of(call, input);
  const device::Verdicts to = verdicts_of(call, verdicts);
  uint32_t* word = status_of(call, status);
  const size_t bytes = device::verify_workspace_bytes(verifier, from, to);
  void* memory = call.workspace(workspace, bytes);
  const py::gil_scoped_release release;
  device::verify(stream_of(stream), verifier, from, memory, bytes, to, word);
}

}  // namespace

void bind_verify(py::module_& m) {
  m.def("verify_workspace_bytes", &workspace_bytes, py::arg("verifier"), py::arg("input"),
        py::arg("verdicts"));
  m.def("verify", &verify, py::arg("stream"), py::arg("verifier"), py::arg("input"),
        py::arg("workspace"), py::arg("verdicts"), py::arg("status"),
        R"(Writes verdicts.nodes [B, C], num_accepted [B] and next_token [B].

input: trees, with draws; proposal; logits [B, M, V]; law, or None; sampling, 64-bit words [B, 4]:
temperature, top_p and min_p as float64, top_k as an integer; changes, or None; seed [B] 64-bit;
sequence_id and position [B]; lossy.
law: row_of_node [B, M], and dense prob [rows, V], or row_offset int64, token, prob, vocab_size and
max_support.
changes: allowed [B, M, ceil(V / 32)]; bias_token and float64 bias [B, biases]; float64 penalties
[B, 3] (repetition, presence, frequency) with history [B, T], history_length and prompt_length [B];
each or None.)");
}

}  // namespace treespec::python::device_ops
