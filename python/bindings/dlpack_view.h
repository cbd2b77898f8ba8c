// SPDX-License-Identifier: Apache-2.0
// Borrows arrays from Python for the length of a call: NumPy directly, anything else by DLPack. No
// copy.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "treespec/array_view.h"

namespace treespec::python {

namespace py = pybind11;

/// A strided array; keeps its owner alive.
struct BorrowedArray {
  py::object owner;
  int32_t device_type = 1;  ///< DLDeviceType; 1 is host memory
  void* data = nullptr;
  bool writeable = true;
  bool is_float = false;
  int bits = 0;
  bool is_bfloat = false;
  std::vector<int64_t> shape, stride;  // stride in elements

  int64_t ndim() const { return static_cast<int64_t>(shape.size()); }
  /// Whether the elements follow one another, the last axis fastest.
  bool is_contiguous() const;
  /// "[3, 4]", for messages.
  std::string shape_text() const;
};

/// Borrows; `name` words the errors. Throws TypeError for what is no array, Unsupported for memory
/// that is not the host's.
BorrowedArray borrow(const py::object& array, const char* name);
/// The same for memory of any device. Orders no streams: the caller's is the one its array is on.
BorrowedArray borrow_anywhere(const py::object& array, const char* name);

bool in_cuda_memory(const py::object& array);
/// What is in CUDA memory as a copy in host memory; anything else as it is.
py::object in_host_memory(const py::object& values);

/// The element type of a floating array; throws InvalidArgument for integers.
DType float_dtype(const BorrowedArray& array, const char* name);

/// `[rows, width]` floats with contiguous rows.
RowsView rows_view(const BorrowedArray& array, const char* name);

/// Integers that fit 32 bits, as NumPy has them; throws InvalidArgument for others, nothing wraps.
py::array whole_numbers(const py::object& values, const char* name);
/// A C-contiguous int32 copy-if-needed of any integer array or sequence, one-dimensional.
using IntArray = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;
IntArray int_array(const py::object& values, const char* name);
inline ArrayView<const int32_t> view(const IntArray& values) {
  return {values.data(), static_cast<int64_t>(values.size())};
}

/// A NumPy copy of a vector.
template <class T>
py::array_t<T> to_numpy(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

}  // namespace treespec::python
