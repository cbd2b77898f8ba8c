// SPDX-License-Identifier: Apache-2.0
// Sampling parameters, from C and to C.
#pragma once

#include <vector>

#include "treespec/sampling.h"
#include "treespec/treespec_c.h"

namespace treespec::c {

/// Checked parameters; those of _init for NULL.
SamplingParams sampling_of(const char* who, const treespec_sampling* sampling);

/// Parameters as a callback sees them; `bias` holds what they point to.
treespec_sampling c_sampling(const SamplingParams& params, std::vector<treespec_logit_bias>& bias);

}  // namespace treespec::c
