// SPDX-License-Identifier: Apache-2.0
// Makers of every verifier, one per file of this folder.
#pragma once

#include <memory>

#include "treespec/verifier.h"

namespace treespec {

std::unique_ptr<Verifier> make_greedy();
std::unique_ptr<Verifier> make_target_only();
std::unique_ptr<Verifier> make_token_level();
std::unique_ptr<Verifier> make_recursive_rejection();

}  // namespace treespec
