// SPDX-License-Identifier: Apache-2.0
// The arguments of one call of a device op: arrays borrowed and checked, kept until it is issued.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

#include "../dlpack_view.h"
#include "treespec/stream.h"

namespace treespec::python {

/// Axes are letters. A letter stands for one size in the whole call, that of the first array which
/// has it; '*' is any size. So "BM" of one array must be "BM" of the next.
class DeviceCall {
 public:
  /// `who` words the errors. Throws Unsupported in a build without device code.
  explicit DeviceCall(const char* who);

  const char* who() const { return who_; }

  /// A contiguous array of T in device memory; signs of integers are not looked at. Throws
  /// InvalidArgument.
  template <class T>
  T* array(const std::string& name, const py::object& value, const char* axes) {
    using Element = std::remove_const_t<T>;
    return static_cast<T*>(
        contiguous(name, value, axes, {std::is_floating_point_v<Element>, 8 * sizeof(Element)}));
  }
  /// The same; null for None.
  template <class T>
  T* optional(const std::string& name, const py::object& value, const char* axes) {
    return value.is_none() ? nullptr : array<T>(name, value, axes);
  }
  /// Attribute `field` of an argument that is a struct of arrays; None if it has none.
  template <class T>
  T* field(const char* name, const py::object& value, const char* field, const char* axes) {
    return array<T>(field_name(name, field), py::getattr(value, field, py::none()), axes);
  }
  template <class T>
  T* optional_field(const char* name, const py::object& value, const char* field,
                    const char* axes) {
    return optional<T>(field_name(name, field), py::getattr(value, field, py::none()), axes);
  }

  /// An array in device memory of any type, with any strides.
  BorrowedArray strided(const std::string& name, const py::object& value, const char* axes);

  /// A byte array that holds `needed` bytes; not looked at where none are needed.
  void* workspace(const py::object& value, size_t needed);

  /// Size of an axis that an array had.
  int32_t size(char axis) const { return sizes_.at(axis); }
  /// Fixes the size of an axis, for the arrays that follow.
  void set_size(char axis, int32_t size) { sizes_[axis] = size; }

 private:
  struct ElementType {
    bool is_float;
    size_t bits;
  };

  void* contiguous(const std::string& name, const py::object& value, const char* axes,
                   ElementType type);
  BorrowedArray borrow(const std::string& name, const py::object& value);
  bool fits(const BorrowedArray& array, const char* axes) const;
  void learn(const BorrowedArray& array, const char* axes);
  std::string shape_text(const char* axes) const;
  static std::string type_text(bool is_float, size_t bits);
  static std::string field_name(const char* name, const char* field) {
    return std::string(name) + "." + field;
  }

  const char* who_;
  std::map<char, int32_t> sizes_;
  std::vector<py::object> kept_;
};

/// A stream as Python has it: the integer of its handle, 0 for the default one.
inline Stream stream_of(uintptr_t handle) { return {reinterpret_cast<void*>(handle)}; }

}  // namespace treespec::python
