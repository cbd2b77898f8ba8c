// SPDX-License-Identifier: Apache-2.0
// Rows of logits of any type that kernels read.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "shared/half.hd.h"
#include "treespec/array_view.h"

namespace treespec::test {

/// Logits in one of three types.
struct Logits {
  DType dtype;
  int64_t width, stride;
  std::vector<char> bytes;

  Logits(DType type, int64_t num_rows, int64_t vocab_size, int64_t padding)
      : dtype(type),
        width(vocab_size),
        stride(vocab_size + padding),
        bytes(static_cast<size_t>(num_rows * stride * size_of(type)), 0) {}

  void set(int64_t row, int64_t token, float value) {
    char* at = bytes.data() + (row * stride + token) * size_of(dtype);
    if (dtype == DType::kFloat32) {
      std::memcpy(at, &value, sizeof value);
      return;
    }
    const uint16_t bits = dtype == DType::kBFloat16 ? bfloat16_of(value) : float16_of(value);
    std::memcpy(at, &bits, sizeof bits);
  }
  RowsView rows(const void* data, int64_t num_rows) const {
    return {data, dtype, num_rows, width, stride};
  }

 private:
  static uint16_t bfloat16_of(float value) {
    return static_cast<uint16_t>(shared::float_to_bits(value) >> 16);
  }
  /// For values whose magnitude is a normal float16, 0 or infinite; the mantissa is cut.
  static uint16_t float16_of(float value) {
    const uint32_t bits = shared::float_to_bits(value);
    const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
    if (std::isinf(value)) return sign | 0x7C00u;
    const int32_t exponent = static_cast<int32_t>(bits >> 23 & 0xFFu) - 112;
    if (exponent <= 0) return sign;
    return static_cast<uint16_t>(sign | exponent << 10 | (bits >> 13 & 0x3FFu));
  }
};

}  // namespace treespec::test
