// SPDX-License-Identifier: Apache-2.0
// exp and log in float64 without library calls or fused operations: equal bits under g++ and nvcc.
#pragma once

#include <cstdint>
#include <cstring>

#include "treespec/hd.h"

namespace treespec::shared {

TREESPEC_HD double bits_to_double(int64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

TREESPEC_HD int64_t double_to_bits(double value) {
  int64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

/// `value` in the exponent field; unsigned, since a signed shift may not overflow.
TREESPEC_HD int64_t shift_to_exponent(int64_t value) {
  return static_cast<int64_t>(static_cast<uint64_t>(value) << 52);
}

/// e^x for x <= 0; 0 below -708 (and for -inf). Relative error under 2 ulp.
TREESPEC_HD double exp_nonpositive(double x) {
  constexpr double kLog2E = 1.4426950408889634074;
  constexpr double kLn2High = 6.93147180369123816490e-01;  // 33 significant bits: k * high is exact
  constexpr double kLn2Low = 1.90821492927058770002e-10;
  constexpr double kRoundToInteger = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to nearest
  const double clamped = x < -708.0 ? -708.0 : x;
  const double shifted = clamped * kLog2E + kRoundToInteger;
  const double k = shifted - kRoundToInteger;
  const double r = (clamped - k * kLn2High) - k * kLn2Low;
  // Taylor terms 1/n!; |r| <= 0.3466, so that the 14th is below half an ulp.
  double p = 1.6059043836821613e-10;
  p = p * r + 2.0876756987868099e-09;
  p = p * r + 2.5052108385441720e-08;
  p = p * r + 2.7557319223985893e-07;
  p = p * r + 2.7557319223985888e-06;
  p = p * r + 2.4801587301587302e-05;
  p = p * r + 1.9841269841269841e-04;
  p = p * r + 1.3888888888888889e-03;
  p = p * r + 8.3333333333333332e-03;
  p = p * r + 4.1666666666666664e-02;
  p = p * r + 1.6666666666666666e-01;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  // The low bits of `shifted` hold k; move them to the exponent field.
  const double scale = bits_to_double(shift_to_exponent(double_to_bits(shifted) + 1023));
  return x < -708.0 ? 0.0 : p * scale;
}

/// ln(x) for normal x in (0, 1]. Relative error under 2 ulp.
TREESPEC_HD double log_unit(double x) {
  constexpr double kLn2High = 6.93147180369123816490e-01;
  constexpr double kLn2Low = 1.90821492927058770002e-10;
  constexpr int64_t kSqrtHalfBits = 0x3FE6A09E667F3BCDLL;
  const int64_t bits = double_to_bits(x);
  // Exponent such that the mantissa lies in [sqrt(1/2), sqrt(2)).
  const int64_t exponent = (bits - kSqrtHalfBits) >> 52;
  const double mantissa = bits_to_double(bits - shift_to_exponent(exponent));
  const double e = static_cast<double>(exponent);
  const double f = mantissa - 1.0;
  const double s = f / (2.0 + f);  // ln(1 + f) = 2 artanh(s), |s| <= 0.1716
  const double z = s * s;
  double p = 1.0 / 21.0;
  p = p * z + 1.0 / 19.0;
  p = p * z + 1.0 / 17.0;
  p = p * z + 1.0 / 15.0;
  p = p * z + 1.0 / 13.0;
  p = p * z + 1.0 / 11.0;
  p = p * z + 1.0 / 9.0;
  p = p * z + 1.0 / 7.0;
  p = p * z + 1.0 / 5.0;
  p = p * z + 1.0 / 3.0;
  const double tail = 2.0 * s * z * p + e * kLn2Low;
  return e * kLn2High + (2.0 * s + tail);
}

}  // namespace treespec::shared
