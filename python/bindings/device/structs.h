// SPDX-License-Identifier: Apache-2.0
// The structs of treespec/device/*.h from Python: any object with their fields as attributes.
#pragma once

#include "device_call.h"
#include "treespec/device/trees.h"

namespace treespec::python {

// Axes: B sequences; M nodes, the root included; D draws of a sequence.

/// `num_nodes`, `parent` and `depth` of `trees`: what the ops on topology read.
device::Trees topology(DeviceCall& call, const py::object& trees);
/// Every array of `trees`.
device::Trees whole_trees(DeviceCall& call, const py::object& trees);

/// The status word, `[B]`.
uint32_t* status_of(DeviceCall& call, const py::object& status);

}  // namespace treespec::python
