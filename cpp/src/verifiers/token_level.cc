// SPDX-License-Identifier: Apache-2.0
// Speculative sampling of a chain: accept a token with min(1, p/q), else draw from (p - q)+. That
// is recursive rejection with one draw per node; draws consumed as there. Source: Leviathan et al.,
// 2023, arXiv 2211.17192, algorithm 1; Chen et al., 2023, arXiv 2302.01318.
#include "verifiers/registry.h"

namespace treespec {

std::unique_ptr<Verifier> make_token_level() { return make_recursive_rejection(); }

}  // namespace treespec
