// SPDX-License-Identifier: Apache-2.0
#include "structs.h"

#include <cstddef>

#include "treespec/error.h"

namespace treespec::python {

device::Trees topology(DeviceCall& call, const py::object& trees) {
  device::Trees out;
  out.num_nodes = call.field<int32_t>("trees", trees, "num_nodes", "B");
  out.parent = call.field<int32_t>("trees", trees, "parent", "BM");
  out.depth = call.field<int32_t>("trees", trees, "depth", "BM");
  out.batch = call.size('B');
  out.max_nodes = call.size('M');
  return out;
}

device::Trees drawn_trees(DeviceCall& call, const py::object& trees) {
  device::Trees out = topology(call, trees);
  out.token = call.field<int32_t>("trees", trees, "token", "BM");
  call.set_size('O', out.max_nodes + 1);
  out.draw_offset = call.field<int32_t>("trees", trees, "draw_offset", "BO");
  out.draw = call.field<int32_t>("trees", trees, "draw", "BD");
  out.max_draws = call.size('D');
  return out;
}

device::Trees whole_trees(DeviceCall& call, const py::object& trees) {
  device::Trees out = drawn_trees(call, trees);
  out.path_logprob = call.field<float>("trees", trees, "path_logprob", "BM");
  return out;
}

device::Calibration calibration_of(DeviceCall& call, const char* name, const py::object& value) {
  call.set_size('2', 2);
  const auto* point = call.optional_field<const double>(name, value, "calibration", "P2");
  return {point != nullptr ? call.size('P') : 0, point};
}

device::ListSource lists_of(DeviceCall& call, const py::object& lists) {
  const auto kind = attribute_or<std::string>(lists, "kind", "");
  device::ListSource out;
  const char* axes = "BLK";
  if (kind == source_name(SourceKind::kTransitions)) {
    out.kind = SourceKind::kTransitions;
    axes = "BLRK";
  } else if (kind == source_name(SourceKind::kExpander)) {
    out.kind = SourceKind::kExpander;
    axes = "BRK";
  } else {
    TREESPEC_CHECK(kind == source_name(SourceKind::kMarginals), call.who(),
                   ": lists.kind must be Marginals, Transitions or Expander, got '", kind, "'");
  }
  out.token = call.field<const int32_t>("lists", lists, "token", axes);
  out.logprob = call.field<const float>("lists", lists, "logprob", axes);
  out.next = call.optional_field<const int32_t>("lists", lists, "next", axes);
  out.depth = out.kind == SourceKind::kExpander ? 1 : call.size('L');
  out.num_rows = out.kind == SourceKind::kMarginals ? 1 : call.size('R');
  out.width = call.size('K');
  return out;
}

device::BuildRequest request_of(DeviceCall& call, const py::object& request) {
  return {call.field<const int32_t>("request", request, "node_budget", "B"),
          call.optional_field<const int32_t>("request", request, "root_token", "B")};
}

device::Frontier frontier_of(DeviceCall& call, const py::object& frontier) {
  device::Frontier out;
  out.num_nodes = call.field<int32_t>("frontier", frontier, "num_nodes", "B");
  out.index = call.field<int32_t>("frontier", frontier, "index", "BF");
  out.parent = call.field<int32_t>("frontier", frontier, "parent", "BF");
  out.token = call.field<int32_t>("frontier", frontier, "token", "BF");
  out.depth = call.field<int32_t>("frontier", frontier, "depth", "BF");
  out.state = call.field<int32_t>("frontier", frontier, "state", "BF");
  out.max_nodes = call.size('F');
  return out;
}

const RoundKey* keys_of(DeviceCall& call, const py::object& key) {
  static_assert(sizeof(RoundKey) == 2 * sizeof(int64_t));
  call.set_size('Y', 2);
  return reinterpret_cast<const RoundKey*>(call.optional<const int64_t>("key", key, "BY"));
}

const device::Sampling* sampling_of(DeviceCall& call, const char* name,
                                    const py::object& sampling) {
  constexpr int32_t kWords = 4;
  static_assert(sizeof(device::Sampling) == kWords * sizeof(int64_t));
  static_assert(offsetof(device::Sampling, top_p) == 8 && offsetof(device::Sampling, top_k) == 24);
  call.set_size('S', kWords);
  return reinterpret_cast<const device::Sampling*>(call.array<const int64_t>(name, sampling, "BS"));
}

device::ScoreChanges changes_of(DeviceCall& call, const py::object& changes, int64_t vocab_size) {
  device::ScoreChanges out;
  if (changes.is_none()) return out;
  call.set_size('A', static_cast<int32_t>((vocab_size + 31) / 32));
  out.allowed = call.optional_field<const uint32_t>("changes", changes, "allowed", "BMA");
  out.bias_token = call.optional_field<const int32_t>("changes", changes, "bias_token", "BI");
  if (out.bias_token != nullptr) {
    out.bias = call.field<const double>("changes", changes, "bias", "BI");
    out.num_biases = call.size('I');
  }
  static_assert(sizeof(device::Penalties) == 3 * sizeof(double));
  call.set_size('P', 3);
  out.penalties = reinterpret_cast<const device::Penalties*>(
      call.optional_field<const double>("changes", changes, "penalties", "BP"));
  if (out.penalties != nullptr) {
    out.history = call.field<const int32_t>("changes", changes, "history", "BT");
    out.max_history = call.size('T');
    out.history_length = call.field<const int32_t>("changes", changes, "history_length", "B");
    out.prompt_length = call.field<const int32_t>("changes", changes, "prompt_length", "B");
  }
  return out;
}

RowsView rows_of(DeviceCall& call, const py::object& logits, const char* axes) {
  const BorrowedArray array = call.strided("logits", logits, axes);
  const int64_t rows = array.shape[1];
  const bool even = array.shape[0] <= 1 || array.stride[0] == rows * array.stride[1];
  const bool whole = array.shape[2] <= 1 || array.stride[2] == 1;
  TREESPEC_CHECK(even && whole, call.who(),
                 ": logits must have contiguous rows, evenly spaced; call .contiguous() first");
  const std::string name = detail::message(call.who(), ": logits");
  return {array.data, float_dtype(array, name.c_str()), array.shape[0] * rows, array.shape[2],
          rows == 1 ? array.stride[0] : array.stride[1]};
}

RowsView row_each_of(DeviceCall& call, const char* name, const py::object& logits,
                     const char* axes) {
  const BorrowedArray array = call.strided(name, logits, axes);
  TREESPEC_CHECK(array.shape[1] <= 1 || array.stride[1] == 1, call.who(), ": ", name,
                 " must have contiguous rows; call .contiguous() first");
  const std::string label = detail::message(call.who(), ": ", name);
  return {array.data, float_dtype(array, label.c_str()), array.shape[0], array.shape[1],
          array.stride[0]};
}

uint32_t* status_of(DeviceCall& call, const py::object& status) {
  return call.array<uint32_t>("status", status, "B");
}

}  // namespace treespec::python
