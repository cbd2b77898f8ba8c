// SPDX-License-Identifier: Apache-2.0
// Element types of graphs, of views, and of C++.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "treespec/array_view.h"
#include "treespec/graph_runner.h"

namespace treespec::exported {

inline ElementType element_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return ElementType::kFloat32;
    case DType::kFloat16:
      return ElementType::kFloat16;
    case DType::kBFloat16:
      return ElementType::kBFloat16;
    case DType::kFloat64:
      break;
  }
  throw std::logic_error("element_type: exported models have no float64");
}

template <class T>
constexpr ElementType element_type_of();
template <>
constexpr ElementType element_type_of<float>() {
  return ElementType::kFloat32;
}
template <>
constexpr ElementType element_type_of<int64_t>() {
  return ElementType::kInt64;
}
template <>
constexpr ElementType element_type_of<bool>() {
  return ElementType::kBool;
}

/// An input to be filled, as elements of T.
template <class T>
T* input_of(GraphRunner& runner, const char* name, const Shape& shape) {
  return static_cast<T*>(runner.input(name, element_type_of<T>(), shape));
}

}  // namespace treespec::exported
