// SPDX-License-Identifier: Apache-2.0
// The sizes of a selector's network as Python has them, on the host and on a device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "treespec/error.h"
#include "treespec/selector.h"

namespace treespec::python {

/// Widths in the order of SelectorSizes. Throws InvalidArgument for more than it has room for.
inline SelectorSizes selector_sizes(const std::vector<int32_t>& state_widths,
                                    int32_t projection_width, int32_t num_scalars,
                                    const std::vector<int32_t>& layer_widths) {
  SelectorSizes sizes;
  TREESPEC_CHECK(state_widths.size() <= SelectorSizes::kMostStates,
                 "DelayedSelector: num_states must be in [0, ", SelectorSizes::kMostStates,
                 "], got ", state_widths.size());
  TREESPEC_CHECK(layer_widths.size() <= SelectorSizes::kMostLayers,
                 "DelayedSelector: num_layers must be in [1, ", SelectorSizes::kMostLayers,
                 "], got ", layer_widths.size());
  sizes.num_states = static_cast<int32_t>(state_widths.size());
  std::copy(state_widths.begin(), state_widths.end(), sizes.state_width);
  sizes.projection_width = projection_width;
  sizes.num_scalars = num_scalars;
  sizes.num_layers = static_cast<int32_t>(layer_widths.size());
  std::copy(layer_widths.begin(), layer_widths.end(), sizes.layer_width);
  return sizes;
}

}  // namespace treespec::python
