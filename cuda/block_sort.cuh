// SPDX-License-Identifier: Apache-2.0
// Sorting in shared or global memory by the threads of a block.
#pragma once

#include <cstdint>
#include <simt.cuh>

#include "treespec/hd.h"

namespace treespec::simt {

/// The smallest power of two >= size, at least 2.
TREESPEC_HD int32_t padded_to_sort(int32_t size) {
  int32_t padded = 2;
  while (padded < size) padded *= 2;
  return padded;
}

/// Sorts `item[0 : size]`, size a power of two >= 2, so that none comes before its predecessor;
/// pad with items that come last. A bitonic network (Batcher, 1968): what moves where depends on
/// no data but comparisons. Memory is seen by all threads before and after. With strides of
/// up to 32 the 32 pairs of a warp lie in 64 items of its own, so that no other warp is waited for.
template <int kThreads, class Item, class Before>
TREESPEC_DEVICE void sort_block(Item* item, int32_t size, Before before) {
  sync_block();
  for (int32_t run = 2; run <= size; run *= 2) {
    for (int32_t stride = run / 2; stride > 0; stride /= 2) {
      for (int32_t pair = thread(); pair < size / 2; pair += kThreads) {
        const int32_t low = 2 * pair - (pair & (stride - 1));
        const int32_t high = low + stride;
        const bool rising = (low & run) == 0;
        const Item a = item[low], b = item[high];
        if (rising ? before(b, a) : before(a, b)) {
          item[low] = b;
          item[high] = a;
        }
      }
      const int32_t next = stride > 1 ? stride / 2 : run;  // the next run starts with half of 2 run
      if (stride > kWarpSize || next > kWarpSize) {
        sync_block();
      } else {
        sync_warp();
      }
    }
  }
  sync_block();
}

}  // namespace treespec::simt
