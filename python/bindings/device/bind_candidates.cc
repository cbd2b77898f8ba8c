// SPDX-License-Identifier: Apache-2.0
#include "ops.h"
#include "structs.h"
#include "treespec/device/candidates.h"
#include "treespec/device/scores.h"

namespace treespec::python::device_ops {
namespace {

void rank_candidates(uintptr_t stream, const py::object& logits, double temperature,
                     const py::object& workspace, const py::object& lists, const py::object& status,
                     const py::object& num_rows) {
  DeviceCall call("rank_candidates");
  const RowsView rows = rows_of(call, logits, "BRV");
  const device::LogitRows from{rows, call.size('R'),
                               call.optional<const int32_t>("num_rows", num_rows, "B")};
  device::CandidateLists to;
  to.token = call.field<int32_t>("lists", lists, "token", "BRK");
  to.logprob = call.field<float>("lists", lists, "logprob", "BRK");
  to.width = call.size('K');
  uint32_t* word = status_of(call, status);
  void* memory =
      call.workspace(workspace, device::rank_candidates_workspace_bytes(rows.num_rows, rows.width));
  const py::gil_scoped_release release;
  device::rank_candidates(stream_of(stream), from, temperature, memory, to, word);
}

void link_transitions(uintptr_t stream, const py::object& lists, const py::object& owner,
                      const py::object& linked) {
  DeviceCall call("link_transitions");
  device::TransitionLists to;
  to.token = call.field<int32_t>("linked", linked, "token", "BDRK");
  to.logprob = call.field<float>("linked", linked, "logprob", "BDRK");
  to.next = call.field<int32_t>("linked", linked, "next", "BDRK");
  to.batch = call.size('B');
  to.depth = call.size('D');
  to.num_rows = call.size('R');
  to.width = call.size('K');
  call.set_size('L', 1 + (to.depth - 1) * to.num_rows);
  call.set_size('O', to.depth - 1);
  device::CandidateLists from;
  from.token = call.field<int32_t>("lists", lists, "token", "BLK");
  from.logprob = call.field<float>("lists", lists, "logprob", "BLK");
  from.width = to.width;
  const auto* owners = to.depth > 1 ? call.array<const int32_t>("owner", owner, "BOR") : nullptr;
  const py::gil_scoped_release release;
  device::link_transitions(stream_of(stream), from, owners, to);
}

/// Any lists that device::ListSource can be, as arrays that may be written.
device::TransitionLists linked_of(DeviceCall& call, const char* name, const py::object& lists) {
  const bool linked = !py::getattr(lists, "next", py::none()).is_none();
  const char* axes = linked ? "BDRK" : "BDK";
  device::TransitionLists out;
  out.token = call.field<int32_t>(name, lists, "token", axes);
  out.logprob = call.field<float>(name, lists, "logprob", axes);
  out.next = call.optional_field<int32_t>(name, lists, "next", axes);
  out.batch = call.size('B');
  out.depth = call.size('D');
  out.num_rows = linked ? call.size('R') : 1;
  out.width = call.size('K');
  return out;
}

void score_lists(uintptr_t stream, const py::object& rule, const py::object& lists,
                 const py::object& scored) {
  DeviceCall call("score_lists");
  device::ScoreRule by;
  by.temperature = attribute_or(rule, "temperature", by.temperature);
  by.calibration = calibration_of(call, "rule", rule);
  const device::TransitionLists from = linked_of(call, "lists", lists);
  const device::TransitionLists to = linked_of(call, "scored", scored);
  const py::gil_scoped_release release;
  device::score_lists(stream_of(stream), by, from, to);
}

}  // namespace

void bind_candidates(py::module_& m) {
  m.def("rank_candidates_workspace_bytes", &device::rank_candidates_workspace_bytes,
        py::arg("num_rows"), py::arg("vocab_size"), "num_rows: B * R.");
  m.def("rank_candidates", &rank_candidates, py::arg("stream"), py::arg("logits"),
        py::arg("temperature"), py::arg("workspace"), py::arg("lists"), py::arg("status"),
        py::kw_only(), py::arg("num_rows") = py::none(),
        R"(Writes lists.token and lists.logprob [B, R, K] for logits [B, R, V].

num_rows [B]: rows from num_rows[b] on are not read, their lists are empty. An empty entry has
token 0 and log-probability -inf.)");
  m.def("link_transitions", &link_transitions, py::arg("stream"), py::arg("lists"),
        py::arg("owner"), py::arg("linked"),
        R"(Writes linked.token, linked.logprob and linked.next [B, D, R, K].

lists: token and logprob [B, 1 + (D - 1) * R, K], the root's list first; owner [B, D - 1, R]: the
token below which a list stands, negative for none. D = 1 does not read it.)");
  m.def("score_lists", &score_lists, py::arg("stream"), py::arg("rule"), py::arg("lists"),
        py::arg("scored"),
        R"(Writes scored.token, scored.logprob and scored.next, in the shapes of lists.

rule: temperature, calibration (float64 [points, 2]). lists: [B, D, K], or [B, D, R, K] with next;
they may be written to themselves.)");
}

}  // namespace treespec::python::device_ops
