// SPDX-License-Identifier: Apache-2.0
// Host checks that device ops share; all throw InvalidArgument.
#pragma once

#include <cstddef>

#include "treespec/device/tree_mask.h"
#include "treespec/device/trees.h"
#include "treespec/error.h"

namespace treespec::device {

inline void check_pointer(const char* who, const char* name, const void* pointer) {
  TREESPEC_CHECK(pointer != nullptr, who, ": ", name, " must be device memory, got null");
}

/// A batch is the y of a grid.
inline void check_batch(const char* who, const char* name, int32_t batch) {
  constexpr int32_t kMaxBatch = 65535;
  TREESPEC_CHECK(batch >= 0 && batch <= kMaxBatch, who, ": ", name, " must be in [0, ", kMaxBatch,
                 "], got ", batch);
}

inline void check_envelope(const char* who, const Trees& trees) {
  check_batch(who, "trees.batch", trees.batch);
  TREESPEC_CHECK(trees.max_nodes >= 1 && trees.max_nodes <= kMaxNodes, who,
                 ": trees.max_nodes must be in [1, ", kMaxNodes, "], got ", trees.max_nodes);
}

/// Ops carve their workspaces into arrays of up to 16-byte elements.
inline void check_workspace(const char* who, const void* workspace, size_t bytes, size_t needed) {
  TREESPEC_CHECK(bytes >= needed, who, ": workspace must hold ", needed, " bytes, got ", bytes);
  TREESPEC_CHECK(needed == 0 || workspace != nullptr, who,
                 ": workspace must be device memory, got null");
  TREESPEC_CHECK(reinterpret_cast<uintptr_t>(workspace) % 16 == 0, who,
                 ": workspace must be aligned to 16 bytes");
}

}  // namespace treespec::device
