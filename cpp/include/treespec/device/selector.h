// SPDX-License-Identifier: Apache-2.0
// The network of treespec::DelayedSelector for a batch, on the device.
#pragma once

#include <cstdint>

#include "treespec/selector.h"
#include "treespec/stream.h"

namespace treespec::device {

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
