// SPDX-License-Identifier: Apache-2.0
// Non-owning views: a typed span, and matrix rows of a run-time element type.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

namespace treespec {

/// A borrowed run of `size` elements. Never owns; the caller keeps the memory alive.
template <class T>
class ArrayView {
 public:
  constexpr ArrayView() = default;
  constexpr ArrayView(T* data, int64_t size) : data_(data), size_(size) {}
  template <class U, class = std::enable_if_t<std::is_convertible_v<U*, T*>>>
  ArrayView(const std::vector<U>& values)  // NOLINT: an implicit view is the point
      : data_(values.data()), size_(static_cast<int64_t>(values.size())) {}

  constexpr T* data() const { return data_; }
  constexpr int64_t size() const { return size_; }
  constexpr bool empty() const { return size_ == 0; }
  constexpr T& operator[](int64_t i) const { return data_[i]; }
  constexpr T* begin() const { return data_; }
  constexpr T* end() const { return data_ + size_; }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
};

enum class DType : uint8_t { kFloat32, kFloat64, kFloat16, kBFloat16 };

/// Bytes of one element.
constexpr int64_t size_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

/// Borrowed rows `[num_rows, width]` in host memory; elements of a row are contiguous.
struct RowsView {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t num_rows = 0;
  int64_t width = 0;
  int64_t row_stride = 0;  ///< elements between the starts of two rows
};

}  // namespace treespec
