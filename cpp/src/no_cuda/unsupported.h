// SPDX-License-Identifier: Apache-2.0
// What every entry of the device says in a build without CUDA.
#pragma once

#include "treespec/error.h"

namespace treespec::device {

[[noreturn]] inline void unsupported(const char* who) {
  throw Unsupported(
      detail::message("device::", who, " needs CUDA; build treespec with a CUDA compiler"));
}

}  // namespace treespec::device
