// SPDX-License-Identifier: Apache-2.0
// One function per bind_*.cc; module.cc calls them all.
#pragma once

#include <pybind11/pybind11.h>

namespace treespec::python {

void bind_rng(pybind11::module_& m);
void bind_tree(pybind11::module_& m);
void bind_source(pybind11::module_& m);
void bind_builder(pybind11::module_& m);
void bind_growth_map(pybind11::module_& m);
void bind_budget(pybind11::module_& m);
void bind_mask(pybind11::module_& m);
void bind_sampling(pybind11::module_& m);
void bind_selector(pybind11::module_& m);
void bind_verifier(pybind11::module_& m);
void bind_kv_commit(pybind11::module_& m);
void bind_device(pybind11::module_& m);

}  // namespace treespec::python

void bind_drafts(pybind11::module_& m);
