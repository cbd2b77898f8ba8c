// SPDX-License-Identifier: Apache-2.0
// Order-free sums: values become integers first, so every order and device gives the same total.
#pragma once

#include <cstdint>

#include "treespec/hd.h"

namespace treespec::shared {

constexpr double kNormalisedScale = 1152921504606846976.0;  // 2^60: rows of mass about 1 (below 8)
constexpr double kRawScale = 17592186044416.0;  // 2^44: exp(l - max), mass up to V < 2^19

/// floor(value * 2^60) for 0 <= value < 8.
TREESPEC_HD int64_t to_fixed(double value) {
  return static_cast<int64_t>(value * kNormalisedScale);
}
/// floor(value * 2^44) for 0 <= value < 2^19.
TREESPEC_HD int64_t to_raw_fixed(double value) { return static_cast<int64_t>(value * kRawScale); }

TREESPEC_HD double from_fixed(uint64_t total) {
  return static_cast<double>(total) * (1.0 / kNormalisedScale);
}
TREESPEC_HD double from_raw_fixed(uint64_t total) {
  return static_cast<double>(total) * (1.0 / kRawScale);
}

}  // namespace treespec::shared
