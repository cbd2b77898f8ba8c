// SPDX-License-Identifier: Apache-2.0
#include "treespec/device/scores.h"

#include "no_cuda/unsupported.h"

namespace treespec::device {

void score_lists(Stream /*stream*/, const ScoreRule& /*rule*/, const TransitionLists& /*lists*/,
                 const TransitionLists& /*scored*/) {
  throw_no_cuda("score_lists");
}

}  // namespace treespec::device
