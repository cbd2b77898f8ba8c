// SPDX-License-Identifier: Apache-2.0
// Lists and tables of candidates as contiguous NumPy arrays.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <type_traits>

#include "dlpack_view.h"
#include "treespec/error.h"

namespace treespec::python {

template <class T>
using Dense = py::array_t<T, py::array::c_style | py::array::forcecast>;

/// Anything array-like as NumPy has it; torch tensors in any floating dtype become float32, and
/// what is in CUDA memory is copied.
template <class T>
py::array plain_array(const py::object& values, const char* name) {
  if constexpr (std::is_same_v<T, int32_t>) return whole_numbers(values, name);
  const py::object here = in_host_memory(values);
  const bool tensor = py::hasattr(here, "detach");
  const py::object plain = tensor ? here.attr("detach")().attr("float")() : here;
  return py::module_::import("numpy").attr("asarray")(plain);
}

/// Contiguous, with the wanted number of dimensions; the caller's own memory where it is already.
template <class T>
Dense<T> dense(const py::object& values, py::ssize_t ndim, const char* name) {
  const auto array = Dense<T>::ensure(plain_array<T>(values, name));
  TREESPEC_CHECK(static_cast<bool>(array), name, " must be numbers");
  TREESPEC_CHECK(array.ndim() == ndim, name, " must have ", ndim, " dimensions, got ",
                 array.ndim());
  return array;
}

template <class A, class B>
void same_shape(const A& a, const B& b, const char* names) {
  bool same = a.ndim() == b.ndim();
  for (py::ssize_t d = 0; same && d < a.ndim(); ++d) same = a.shape(d) == b.shape(d);
  TREESPEC_CHECK(same, names, " must have the same shape");
}

}  // namespace treespec::python
