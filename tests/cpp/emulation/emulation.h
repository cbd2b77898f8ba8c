// SPDX-License-Identifier: Apache-2.0
// Runs the blocks of a launch on the host, one after the other, each thread of a block as a fiber.
// It is made to find mistakes: threads resume in an order that a seed shuffles, a barrier or an
// exchange that not all threads reach is an error, shared memory starts as rubbish.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "grid.h"

namespace treespec::simt::emulation {

/// What a kernel did that a GPU answers with a hang, a fault or a wrong result.
class Mistake : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

/// Order of blocks, warps and lanes in the launches that follow, on this host thread. Seed 0 is
/// ascending; each other seed is an order of its own.
void set_order(uint64_t seed);

// --- For simt.cuh --------------------------------------------------------------------------------

/// Place in the source; equal for all threads that arrive at one barrier together.
struct Site {
  const char* what;
  const char* file;
  int line;
};

struct Position {
  int thread = 0;
  int block = 0;
  int block_y = 0;
  int num_blocks = 0;
  char* shared_memory = nullptr;
};

/// Of the running thread; null outside a kernel.
inline thread_local const Position* position = nullptr;

constexpr int kMaxWords = 8;
/// What the lanes of a warp brought to an exchange.
struct Table {
  uint32_t word[kWarpSize][kMaxWords];
};

void wait_for_block(const Site& site);
/// Waits for the warp; the table stands until the calling thread's next exchange.
const Table& exchange(const Site& site, const void* value, int words);
/// Ends the launch with a Mistake.
[[noreturn]] void fail(const char* what);

using Body = void (*)(const void* kernel);
void run_grid(const char* kernel_name, Body body, const void* kernel, int num_threads,
              const Grid& grid);

}  // namespace treespec::simt::emulation
