// SPDX-License-Identifier: Apache-2.0
// Makers of every verifier, one per file of this folder.
#pragma once

#include <memory>

#include "treespec/verifier.h"

namespace treespec {

std::unique_ptr<Verifier> make_greedy();
std::unique_ptr<Verifier> make_target_only();
std::unique_ptr<Verifier> make_token_level();
std::unique_ptr<Verifier> make_block();
std::unique_ptr<Verifier> make_naive_tree();
std::unique_ptr<Verifier> make_recursive_rejection();
std::unique_ptr<Verifier> make_spectr();
std::unique_ptr<Verifier> make_khisti();
std::unique_ptr<Verifier> make_traversal();
std::unique_ptr<Verifier> make_top_plus_one_verifier();
std::unique_ptr<Verifier> make_typical();

}  // namespace treespec
