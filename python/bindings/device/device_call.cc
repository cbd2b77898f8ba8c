// SPDX-License-Identifier: Apache-2.0
#include "device_call.h"

#include <string_view>

#include "memory.h"
#include "treespec/device.h"
#include "treespec/error.h"

namespace treespec::python {

DeviceCall::DeviceCall(const char* who) : who_(who) {
  if (cuda_built()) return;
  throw Unsupported(detail::message(
      who, ": treespec was built without CUDA; build it with a CUDA compiler on PATH"));
}

BorrowedArray DeviceCall::strided(const std::string& name, const py::object& value,
                                  const char* axes) {
  BorrowedArray array = borrow(name, value);
  TREESPEC_CHECK(fits(array, axes), who_, ": ", name, " must be ", shape_text(axes), ", got ",
                 array.shape_text());
  learn(array, axes);
  return array;
}

void* DeviceCall::workspace(const py::object& value, size_t needed) {
  if (needed == 0) return nullptr;
  auto* bytes = array<uint8_t>("workspace", value, "#");
  const auto held = static_cast<size_t>(size('#'));
  TREESPEC_CHECK(held >= needed, who_, ": workspace must hold ", needed, " bytes, got ", held);
  return bytes;
}

void* DeviceCall::contiguous(const std::string& name, const py::object& value, const char* axes,
                             ElementType type) {
  const BorrowedArray array = borrow(name, value);
  const auto bits = static_cast<size_t>(array.bits);
  const bool same_type = array.is_float == type.is_float && bits == type.bits;
  TREESPEC_CHECK(same_type && fits(array, axes), who_, ": ", name, " must be ",
                 type_text(type.is_float, type.bits), " ", shape_text(axes), ", got ",
                 type_text(array.is_float, bits), " ", array.shape_text());
  TREESPEC_CHECK(array.is_contiguous(), who_, ": ", name,
                 " must be contiguous, got strides that skip elements");
  learn(array, axes);
  return array.data;
}

BorrowedArray DeviceCall::borrow(const std::string& name, const py::object& value) {
  TREESPEC_CHECK(!value.is_none(), who_, ": ", name, " must be an array, got None");
  const std::string label = detail::message(who_, ": ", name);
  BorrowedArray array = borrow_anywhere(value, label.c_str());
  TREESPEC_CHECK(array.device_type == kDeviceMemory.dlpack_type, who_, ": ", name, " must be in ",
                 kDeviceMemory.name, " memory, got an array elsewhere");
  kept_.push_back(array.owner);
  return array;
}

bool DeviceCall::fits(const BorrowedArray& array, const char* axes) const {
  const std::string_view letters(axes);
  if (array.shape.size() != letters.size()) return false;
  for (size_t d = 0; d < letters.size(); ++d) {
    const auto known = sizes_.find(letters[d]);
    if (known != sizes_.end() && known->second != array.shape[d]) return false;
    if (array.shape[d] > INT32_MAX) return false;
  }
  return true;
}

void DeviceCall::learn(const BorrowedArray& array, const char* axes) {
  for (size_t d = 0; d < array.shape.size(); ++d) {
    if (axes[d] != '*') sizes_[axes[d]] = static_cast<int32_t>(array.shape[d]);
  }
}

std::string DeviceCall::shape_text(const char* axes) const {
  std::string text = "[";
  for (const char axis : std::string_view(axes)) {
    const auto known = sizes_.find(axis);
    if (text.size() > 1) text += ", ";
    text += known == sizes_.end() ? std::string(1, axis) : std::to_string(known->second);
  }
  return text + "]";
}

std::string DeviceCall::type_text(bool is_float, size_t bits) {
  return is_float ? detail::message("float", bits) : detail::message(bits, "-bit integers");
}

}  // namespace treespec::python
