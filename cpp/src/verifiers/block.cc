// SPDX-License-Identifier: Apache-2.0
// Block verification: a chain is judged as a whole, from its end; the best lossless rule for one
// chain. That is traversal where no node has two draws; draws consumed as there.
// Source: Sun et al., "Block Verification Accelerates Speculative Decoding", 2024, arXiv
// 2403.10444.
#include "verifiers/registry.h"

namespace treespec {

std::unique_ptr<Verifier> make_block() { return make_traversal(); }

}  // namespace treespec
