// SPDX-License-Identifier: Apache-2.0
// fp16 and bf16 to float, from their bits: no compiler type needed.
#pragma once

#include <cstdint>
#include <cstring>

#include "treespec/hd.h"

namespace treespec::shared {

TREESPEC_HD float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

TREESPEC_HD uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

TREESPEC_HD float bfloat16_to_float(uint16_t bits) {
  return bits_to_float(static_cast<uint32_t>(bits) << 16);
}

TREESPEC_HD float float16_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = bits >> 10 & 0x1Fu;
  const uint32_t mantissa = bits & 0x3FFu;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24 is exact in float
    const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-08f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t wide = exponent == 0x1Fu ? 0xFFu : exponent + 112u;
  return bits_to_float(sign | wide << 23 | mantissa << 13);
}

}  // namespace treespec::shared
