// SPDX-License-Identifier: Apache-2.0
// treespec._core: a list of what is bound. No algorithm lives in this folder.
#include <pybind11/pybind11.h>

#include "bindings.h"
#include "treespec/error.h"
#include "treespec/version.h"

PYBIND11_MODULE(_core, m) {
  using namespace treespec::python;
  m.doc() = "The native core of treespec: trees, builders, masks, verifiers, KV commit.";
  m.attr("__version__") = TREESPEC_VERSION;
  pybind11::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const treespec::Unsupported& unsupported) {
      PyErr_SetString(PyExc_NotImplementedError, unsupported.what());
    }
  });
  bind_rng(m);
  bind_tree(m);
  bind_source(m);
  bind_builder(m);
  bind_growth_map(m);
  bind_mask(m);
  bind_sampling(m);
  bind_verifier(m);
  bind_selector(m);
  bind_budget(m);
  bind_kv_commit(m);
  bind_drafts(m);
  bind_device(m);
}
