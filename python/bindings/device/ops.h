// SPDX-License-Identifier: Apache-2.0
// The ops of treespec/device/*.h, bound by file; bind_ops calls them all. They follow the C++
// signatures: the stream first, structs as objects with their fields, outputs by the caller.
#pragma once

#include <pybind11/pybind11.h>

namespace treespec::python::device_ops {

void bind_ops(pybind11::module_& m);

void bind_candidates(pybind11::module_& m);
void bind_tree_builder(pybind11::module_& m);
void bind_drawn_trees(pybind11::module_& m);
void bind_tree_mask(pybind11::module_& m);
void bind_verify(pybind11::module_& m);
void bind_selector(pybind11::module_& m);
void bind_kv_commit(pybind11::module_& m);

}  // namespace treespec::python::device_ops
