// SPDX-License-Identifier: Apache-2.0
// The version, in one place: CMake and setup.py read it from this file.
#pragma once

#define TREESPEC_VERSION "0.1.0"

namespace treespec {

/// `major.minor.patch` of these headers.
inline constexpr const char* kVersion = TREESPEC_VERSION;

}  // namespace treespec
