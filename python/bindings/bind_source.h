// SPDX-License-Identifier: Apache-2.0
// The Python side of a CandidateSource: the arrays it borrows stay alive with it.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <vector>

#include "treespec/source.h"

namespace treespec::python {

namespace py = pybind11;

struct PySource {
  std::vector<py::array> kept;
  std::shared_ptr<CandidateSource> source;
};

}  // namespace treespec::python
