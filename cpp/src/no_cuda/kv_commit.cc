// SPDX-License-Identifier: Apache-2.0
#include "treespec/device/kv_commit.h"

#include "no_cuda/unsupported.h"

namespace treespec::device {

void commit_kv(Stream, const KvCache&, const AcceptedPaths&, const int32_t*, uint32_t*) {
  throw_no_cuda("commit_kv");
}
void commit_kv_and_advance(Stream, const KvCache&, const AcceptedPaths&, int32_t*, void*, size_t,
                           uint32_t*) {
  throw_no_cuda("commit_kv_and_advance");
}
size_t commit_kv_workspace_bytes(int32_t) { throw_no_cuda("commit_kv_workspace_bytes"); }

}  // namespace treespec::device
