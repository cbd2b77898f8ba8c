// SPDX-License-Identifier: Apache-2.0
#include "ops.h"

namespace treespec::python::device_ops {

void bind_ops(pybind11::module_& m) {
  bind_candidates(m);
  bind_tree_builder(m);
  bind_drawn_trees(m);
  bind_tree_mask(m);
  bind_verify(m);
  bind_selector(m);
  bind_kv_commit(m);
}

}  // namespace treespec::python::device_ops
