// SPDX-License-Identifier: Apache-2.0
#include "dlpack_view.h"

#include <string_view>

#include "treespec/error.h"

namespace treespec::python {
namespace {

// The fields of DLPack's ABI (dmlc/dlpack, version 0.x capsule "dltensor") that a borrow reads.
struct DLDevice {
  int32_t type, id;
};
struct DLDataType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
constexpr int32_t kCpu = 1;
constexpr uint8_t kFloatCode = 2;
constexpr uint8_t kBFloatCode = 4;

BorrowedArray borrow_numpy(const py::array& array, const char* name) {
  const py::ssize_t item = array.itemsize();
  const char order = array.dtype().byteorder();
  TREESPEC_CHECK(item > 0 && (order == '=' || order == '|'), name,
                 ": must have elements in this machine's byte order");
  BorrowedArray out;
  out.owner = array;
  out.data = const_cast<void*>(array.data());
  out.writeable = array.writeable();
  out.is_float = array.dtype().kind() == 'f';
  out.bits = static_cast<int>(item) * 8;
  for (py::ssize_t d = 0; d < array.ndim(); ++d) {
    TREESPEC_CHECK(array.strides(d) % item == 0, name,
                   ": must have strides of whole elements; call np.ascontiguousarray first");
    out.shape.push_back(array.shape(d));
    out.stride.push_back(array.strides(d) / item);
  }
  return out;
}

/// A list of numbers, or of lists of them, as a float64 array.
BorrowedArray borrow_sequence(const py::object& values, const char* name) {
  const auto array = py::array_t<double, py::array::c_style>::ensure(values);
  TREESPEC_CHECK(static_cast<bool>(array), name, ": must be a rectangular array of numbers");
  BorrowedArray out = borrow_numpy(array, name);
  out.writeable = false;  // a copy: what is written to it would be lost
  return out;
}

/// Stream -1 asks the owner of device memory not to order streams, which a capture would record.
py::object export_dlpack(const py::object& array) {
  const auto device = array.attr("__dlpack_device__")().cast<py::tuple>();
  if (device[0].cast<int32_t>() == kCpu) return array.attr("__dlpack__")();
  return array.attr("__dlpack__")(py::arg("stream") = -1);
}

BorrowedArray borrow_dlpack(const py::object& array, const char* name) {
  // torch refuses to export a tensor that requires gradients; its detached twin shares the memory.
  const py::object plain = py::hasattr(array, "detach") ? array.attr("detach")() : array;
  const py::object owner = export_dlpack(plain);  // frees the tensor view when it dies
  const auto capsule = py::reinterpret_borrow<py::capsule>(owner);
  TREESPEC_CHECK(std::string_view(capsule.name()) == "dltensor", name,
                 ": must export an unversioned DLPack capsule");
  const auto* tensor = static_cast<const DLTensor*>(capsule.get_pointer());
  BorrowedArray out;
  out.owner = owner;
  out.device_type = tensor->device.type;
  out.data = static_cast<char*>(tensor->data) + tensor->byte_offset;
  out.is_float = tensor->dtype.code == kFloatCode || tensor->dtype.code == kBFloatCode;
  out.is_bfloat = tensor->dtype.code == kBFloatCode;
  out.bits = tensor->dtype.bits;
  out.shape.assign(tensor->shape, tensor->shape + tensor->ndim);
  out.stride.assign(out.shape.size(), 1);
  for (int64_t d = tensor->ndim - 1, step = 1; d >= 0; --d) {
    out.stride[static_cast<size_t>(d)] = tensor->strides != nullptr ? tensor->strides[d] : step;
    step *= tensor->shape[d];
  }
  return out;
}

}  // namespace

std::string BorrowedArray::shape_text() const {
  std::string text = "[";
  for (const int64_t extent : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  return text + "]";
}

bool BorrowedArray::is_contiguous() const {
  int64_t step = 1;
  for (size_t d = shape.size(); d-- > 0; step *= shape[d]) {
    if (shape[d] == 0) return true;
    if (shape[d] > 1 && stride[d] != step) return false;
  }
  return true;
}

BorrowedArray borrow(const py::object& array, const char* name) {
  BorrowedArray out = borrow_anywhere(array, name);
  if (out.device_type == kCpu) return out;
  throw Unsupported(detail::message(
      name, ": must be in host memory, got a device array; treespec.device has ops for those"));
}

BorrowedArray borrow_anywhere(const py::object& array, const char* name) {
  if (py::isinstance<py::array>(array)) return borrow_numpy(py::cast<py::array>(array), name);
  if (py::hasattr(array, "__dlpack__")) return borrow_dlpack(array, name);
  if (py::isinstance<py::sequence>(array)) return borrow_sequence(array, name);
  throw py::type_error(detail::message(name, ": must be an array (NumPy or DLPack), got ",
                                       py::str(py::type::of(array)).cast<std::string>()));
}

bool in_cuda_memory(const py::object& array) {
  if (py::isinstance<py::array>(array)) return false;
  return !py::module_::import("treespec.placement").attr("gpu_of")(array).is_none();
}

py::object in_host_memory(const py::object& values) {
  if (!in_cuda_memory(values)) return values;
  return py::module_::import("treespec.placement").attr("in_host_memory")(values);
}

DType float_dtype(const BorrowedArray& array, const char* name) {
  TREESPEC_CHECK(array.is_float, name, ": dtype must be a floating type, got integers");
  if (array.is_bfloat) return DType::kBFloat16;
  if (array.bits == 16) return DType::kFloat16;
  TREESPEC_CHECK(array.bits == 32 || array.bits == 64, name,
                 ": dtype must be float16, bfloat16, float32 or float64, got ", array.bits,
                 "-bit floats");
  return array.bits == 32 ? DType::kFloat32 : DType::kFloat64;
}

RowsView rows_view(const BorrowedArray& array, const char* name) {
  TREESPEC_CHECK(array.ndim() == 2, name, ": shape must be [rows, V], got ", array.shape_text());
  TREESPEC_CHECK(array.shape[0] == 0 || array.shape[1] <= 1 || array.stride[1] == 1, name,
                 ": rows must be contiguous; call .contiguous() or np.ascontiguousarray first");
  return {array.data, float_dtype(array, name), array.shape[0], array.shape[1], array.stride[0]};
}

py::array whole_numbers(const py::object& values, const char* name) {
  const py::object here = in_host_memory(values);
  const py::object plain = py::hasattr(here, "detach") ? here.attr("detach")() : here;
  const py::array array = py::module_::import("numpy").attr("asarray")(plain);
  const char kind = array.dtype().kind();
  TREESPEC_CHECK(kind == 'i' || kind == 'u' || array.size() == 0, name, ": must be integers");
  if (array.itemsize() > 4 || (kind == 'u' && array.itemsize() == 4)) {
    const auto any = [&](const char* operation, int64_t bound) {
      return array.size() > 0 && array.attr(operation)(bound).attr("any")().cast<bool>();
    };
    TREESPEC_CHECK(!any("__lt__", INT32_MIN) && !any("__gt__", INT32_MAX), name,
                   ": must be 32-bit integers, got ", std::string(py::str(array.attr("min")())),
                   " to ", std::string(py::str(array.attr("max")())));
  }
  return array;
}

IntArray int_array(const py::object& values, const char* name) {
  const py::array array = whole_numbers(values, name);
  TREESPEC_CHECK(array.ndim() == 1, name, ": must be one-dimensional, got ", array.ndim(),
                 " dimensions");
  return IntArray::ensure(array);
}

}  // namespace treespec::python
