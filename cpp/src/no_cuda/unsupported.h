// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "treespec/error.h"

namespace treespec {

/// What every CUDA entry does without CUDA.
[[noreturn]] inline void throw_no_cuda(const char* who) {
  throw Unsupported(detail::message(
      who, ": treespec was built without CUDA; build it with a CUDA compiler on PATH"));
}

}  // namespace treespec
