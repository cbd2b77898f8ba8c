// SPDX-License-Identifier: Apache-2.0
// The structs of treespec/device/*.h from Python: any object with their fields as attributes. An
// attribute that is None or not there keeps the struct's default.
#pragma once

#include "device_call.h"
#include "treespec/device/tree_builder.h"
#include "treespec/device/trees.h"
#include "treespec/device/verify.h"

namespace treespec::python {

// Axes: B sequences; M nodes, the root included; D draws of a sequence; F frontier nodes; K
// candidates of a list.

/// `num_nodes`, `parent` and `depth` of `trees`: what the ops on topology read.
device::Trees topology(DeviceCall& call, const py::object& trees);
/// The same with tokens and draws: what verification reads.
device::Trees drawn_trees(DeviceCall& call, const py::object& trees);
/// Every array of `trees`.
device::Trees whole_trees(DeviceCall& call, const py::object& trees);

/// Attribute `calibration` of `value`: pairs of float64 `[points, 2]`, or None.
device::Calibration calibration_of(DeviceCall& call, const char* name, const py::object& value);

/// Lists with a `kind`, a name of source_name.
device::ListSource lists_of(DeviceCall& call, const py::object& lists);
device::BuildRequest request_of(DeviceCall& call, const py::object& request);
device::Frontier frontier_of(DeviceCall& call, const py::object& frontier);
/// 64-bit integers `[B, 2]`: the seed, and sequence_id + (position << 32).
const RoundKey* keys_of(DeviceCall& call, const py::object& key);

/// 64-bit words `[B, 4]`: temperature, top_p and min_p as float64, top_k as an integer.
const device::Sampling* sampling_of(DeviceCall& call, const char* name, const py::object& sampling);
/// Any of them may be None, and all.
device::ScoreChanges changes_of(DeviceCall& call, const py::object& changes, int64_t vocab_size);
/// A row of each sequence: any distance between them, the same everywhere.
RowsView row_each_of(DeviceCall& call, const char* name, const py::object& logits,
                     const char* axes);
/// `[B, rows, V]` as rows: any distance between them, the same everywhere.
RowsView rows_of(DeviceCall& call, const py::object& logits, const char* axes);
/// The status word, `[B]`.
uint32_t* status_of(DeviceCall& call, const py::object& status);

/// A scalar attribute.
template <class T>
T attribute_or(const py::object& value, const char* name, T standard) {
  const py::object found = py::getattr(value, name, py::none());
  return found.is_none() ? standard : found.cast<T>();
}

}  // namespace treespec::python
