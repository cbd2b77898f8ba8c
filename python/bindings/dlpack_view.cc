// SPDX-License-Identifier: Apache-2.0
#include "dlpack_view.h"

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

BorrowedArray borrow_numpy(const py::array& array) {
  BorrowedArray out;
  out.owner = array;
  out.data = const_cast<void*>(array.data());
  out.is_float = array.dtype().kind() == 'f';
  out.bits = static_cast<int>(array.itemsize()) * 8;
  for (py::ssize_t d = 0; d < array.ndim(); ++d) {
    out.shape.push_back(array.shape(d));
    out.stride.push_back(array.strides(d) / array.itemsize());
  }
  return out;
}

BorrowedArray borrow_dlpack(const py::object& array, const char* name) {
  const py::object owner = array.attr("__dlpack__")();  // frees the tensor view when it dies
  const auto capsule = py::reinterpret_borrow<py::capsule>(owner);
  const auto* tensor = static_cast<const DLTensor*>(capsule.get_pointer());
  if (tensor->device.type != kCpu) {
    throw Unsupported(detail::message(
        name, ": must be in host memory, got a device array; CUDA arrays need the CUDA runtime"));
  }
  BorrowedArray out;
  out.owner = owner;
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

BorrowedArray borrow(const py::object& array, const char* name) {
  if (py::isinstance<py::array>(array)) return borrow_numpy(py::cast<py::array>(array));
  if (py::hasattr(array, "__dlpack__")) return borrow_dlpack(array, name);
  if (py::isinstance<py::sequence>(array)) {
    return borrow_numpy(py::array_t<double, py::array::c_style>::ensure(array));
  }
  throw py::type_error(detail::message(name, ": must be an array (NumPy or DLPack), got ",
                                       py::str(py::type::of(array)).cast<std::string>()));
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

IntArray int_array(const py::object& values, const char* name) {
  const auto array = py::array::ensure(values);
  if (!array) PyErr_Clear();
  const char kind = array ? array.dtype().kind() : '?';
  TREESPEC_CHECK(kind == 'i' || kind == 'u' || (array && array.size() == 0), name,
                 ": must be integers");
  TREESPEC_CHECK(array.ndim() == 1, name, ": must be one-dimensional, got ", array.ndim(),
                 " dimensions");
  return IntArray::ensure(array);
}

}  // namespace treespec::python
