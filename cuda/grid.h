// SPDX-License-Identifier: Apache-2.0
// The size of a launch, and its limits on every GPU that treespec is compiled for.
#pragma once

#include <cstddef>
#include <cstdint>

#include "treespec/error.h"

namespace treespec::simt {

constexpr int kWarpSize = 32;
/// Shared memory a block may use: what sm_120 has, the least of the compiled architectures.
constexpr size_t kMaxSharedBytes = 99 * 1024;

/// Blocks of a launch and the dynamic shared memory of each; no blocks is no launch.
struct Grid {
  int64_t x = 1;
  int64_t y = 1;
  size_t shared_bytes = 0;
};

/// Throws InvalidArgument for a grid that some GPU could not launch.
inline void check_grid(const Grid& grid) {
  constexpr int64_t kMaxX = INT32_MAX, kMaxY = 65535;
  TREESPEC_CHECK(grid.x >= 0 && grid.x <= kMaxX, "launch: grid.x must be in [0, ", kMaxX, "], got ",
                 grid.x);
  TREESPEC_CHECK(grid.y >= 0 && grid.y <= kMaxY, "launch: grid.y must be in [0, ", kMaxY, "], got ",
                 grid.y);
  TREESPEC_CHECK(grid.shared_bytes <= kMaxSharedBytes, "launch: shared_bytes must be at most ",
                 kMaxSharedBytes, ", got ", grid.shared_bytes);
}

}  // namespace treespec::simt
