// SPDX-License-Identifier: Apache-2.0
// Borrowed sampling inputs shared by bind_sampling.cc and bind_verifier.cc.
#pragma once

#include <optional>

#include "dlpack_view.h"
#include "treespec/sampling.h"

namespace treespec::python {

using AllowedMask = py::array_t<uint32_t, py::array::c_style>;

/// Words of a `[num_rows, ceil(V / 32)]` uint32 bitmask, or null; throws InvalidArgument for
/// others.
const uint32_t* allowed_words(const std::optional<AllowedMask>& mask, int64_t num_rows,
                              int64_t vocab_size);

}  // namespace treespec::python
