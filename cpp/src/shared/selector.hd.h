// SPDX-License-Identifier: Apache-2.0
// The arithmetic of the selector's network; an output adds its inputs in ascending order, whoever
// computes it.
#pragma once

#include <cmath>
#include <cstdint>

#include "shared/math.hd.h"

namespace treespec::shared {

/// GELU in its tanh form: x * sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3).
TREESPEC_HD float gelu(float x) {
  constexpr double kTwoSqrtTwoOverPi = 1.5957691216057308;
  const double wide = static_cast<double>(x);
  const double twice = kTwoSqrtTwoOverPi * (wide + 0.044715 * (wide * wide * wide));
  const double small = exp_nonpositive(twice < 0.0 ? twice : -twice);
  const double sigmoid = (twice < 0.0 ? small : 1.0) / (1.0 + small);
  return static_cast<float>(wide * sigmoid);
}

/// What a state is normalised with.
struct Moments {
  double mean;
  double inverse_deviation;
};

TREESPEC_HD Moments moments(const float* values, int32_t size) {
  constexpr double kEpsilon = 1e-5;  // as layer norms have it
  double sum = 0.0;
  for (int32_t i = 0; i < size; ++i) sum += static_cast<double>(values[i]);
  const double mean = sum / size;
  double squares = 0.0;
  for (int32_t i = 0; i < size; ++i) {
    const double gap = static_cast<double>(values[i]) - mean;
    squares += gap * gap;
  }
  return {mean, 1.0 / sqrt(squares / size + kEpsilon)};
}

TREESPEC_HD float normalised(float value, const Moments& of, float scale, float shift) {
  const auto unit =
      static_cast<float>((static_cast<double>(value) - of.mean) * of.inverse_deviation);
  return unit * scale + shift;
}

TREESPEC_HD float standardised(float value, float mean, float inverse_deviation) {
  return (value - mean) * inverse_deviation;
}

}  // namespace treespec::shared
