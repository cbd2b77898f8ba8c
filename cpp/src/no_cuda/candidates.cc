// SPDX-License-Identifier: Apache-2.0
#include "treespec/device/candidates.h"

#include "no_cuda/unsupported.h"

namespace treespec::device {

size_t rank_candidates_workspace_bytes(int64_t /*num_rows*/, int64_t /*vocab_size*/) {
  throw_no_cuda("rank_candidates_workspace_bytes");
}

void rank_candidates(Stream /*stream*/, const LogitRows& /*logits*/, double /*temperature*/,
                     void* /*workspace*/, const CandidateLists& /*lists*/, uint32_t* /*status*/) {
  throw_no_cuda("rank_candidates");
}

void link_transitions(Stream /*stream*/, const CandidateLists& /*lists*/, const int32_t* /*owner*/,
                      const TransitionLists& /*linked*/) {
  throw_no_cuda("link_transitions");
}

}  // namespace treespec::device
