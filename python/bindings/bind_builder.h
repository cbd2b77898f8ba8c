// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <string>

#include "treespec/tree_builder.h"

namespace treespec::python {

/// A builder under the name it was made by.
struct NamedBuilder {
  std::string name;
  std::shared_ptr<const TreeBuilder> builder;
};

/// Keyword arguments as options; those that are None have their default.
BuilderOptions builder_options(const pybind11::kwargs& kwargs);

}  // namespace treespec::python
