// SPDX-License-Identifier: Apache-2.0
// What treespec::DelayedSelector reads, and its network, for a batch on the device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "treespec/array_view.h"
#include "treespec/device/verify.h"
#include "treespec/selector.h"
#include "treespec/stream.h"

namespace treespec::device {

/// What the scalars of a batch are worked out from; all pointers are device memory. Rows are
/// float32, float16 or bfloat16, those of the target of V at most 2^18.
struct RootLaws {
  RowsView target;  ///< [batch, V]: the target's after the token before the root
  RowsView draft;   ///< [batch, any width]: the drafter's there; ids from V on do not exist
  RowsView root;    ///< [batch, any width]: the drafter's after the root
  const Sampling* sampling = nullptr;        ///< [batch]; of the target
  const Sampling* draft_sampling = nullptr;  ///< [batch]; of both rows of the drafter
  ScoreChanges changes;                      ///< of the target's rows; max_nodes is 1
  const int32_t* tokens_before = nullptr;    ///< [batch]; before the root, at least 1
};

size_t root_scalars_workspace_bytes(const RootLaws& laws);

/// `scalars` [batch, 9]: RootScalars of every sequence, bit for bit those of treespec::law_features
/// and treespec::root_scalars. A launch reads all logits once and leaves sums of their blocks,
/// another reads them again, a block of threads for each sequence; penalties and bias take one more
/// before. InvalidArgument: rows or sizes out of range. `status`: kNotANumber (NaN or +inf in a
/// row), kEmptyRow, kOutOfBounds (tokens_before); the scalars of such a sequence are NaN.
void root_scalars(Stream stream, const RootLaws& laws, void* workspace, size_t workspace_bytes,
                  float* scalars, uint32_t* status);

/// A selector whose arrays are device memory of the caller's.
struct Selector {
  SelectorSizes sizes;
  const float* parameters = nullptr;   ///< [num_parameters()], as DelayedSelector has them
  const int32_t* num_nodes = nullptr;  ///< [num_outputs()]: of every shape
  const int32_t* depth = nullptr;      ///< [num_outputs()]
};

/// What is known of every sequence before the round.
struct SelectorInputs {
  int32_t batch = 0;
  const float* state[SelectorSizes::kMostStates] =
      {};                                ///< [batch, state_width[s]], those there are
  const float* scalars = nullptr;        ///< [batch, num_scalars]
  const int32_t* node_budget = nullptr;  ///< [batch]
  const int32_t* max_depth = nullptr;    ///< [batch]
};

/// `chosen` [batch]: the place that DelayedSelector::choose gives, with the same bits on the way; a
/// block for each sequence, one launch. -1 with a status of kNotANumber where the score of a shape
/// that fits is NaN, of kOutOfBounds where no shape fits. InvalidArgument: sizes that
/// check_selector refuses, or rows too wide for a block's shared memory (99 KiB for two of them).
void choose_shapes(Stream stream, const Selector& selector, const SelectorInputs& inputs,
                   int32_t* chosen, uint32_t* status);

}  // namespace treespec::device
