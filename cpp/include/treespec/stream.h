// SPDX-License-Identifier: Apache-2.0
// An opaque CUDA stream, so that public headers need no CUDA header.
#pragma once

namespace treespec {

/// `handle` is a `cudaStream_t`; null is the default stream. Ignored by CPU entries.
struct Stream {
  void* handle = nullptr;
};

}  // namespace treespec
