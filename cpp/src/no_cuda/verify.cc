// SPDX-License-Identifier: Apache-2.0
#include "treespec/device/verify.h"

#include "no_cuda/unsupported.h"

namespace treespec::device {

size_t verify_workspace_bytes(std::string_view, const VerifyInput&, const Verdicts&) {
  throw_no_cuda("verify_workspace_bytes");
}
void verify(Stream, std::string_view, const VerifyInput&, void*, size_t, const Verdicts&,
            uint32_t*) {
  throw_no_cuda("verify");
}

}  // namespace treespec::device
