// SPDX-License-Identifier: Apache-2.0
// A function on a stack of its own, resumed and suspended by hand.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace treespec::simt::emulation {

/// Where a suspended flow of control goes on: a kernel thread, or the one that resumes them.
struct Fiber {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
};

/// Prepares `fiber` to call `entry`, which must never return, on `stack[0 : bytes]`.
void prepare(Fiber& fiber, void (*entry)(), char* stack, size_t bytes);
/// Suspends the running flow in `from` and resumes `to`.
void switch_fiber(Fiber& from, Fiber& to);

/// Stacks of `bytes` each, with an unmapped page below each, so that an overflow is a fault.
class Stacks {
 public:
  Stacks(int count, size_t bytes);
  ~Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  char* operator[](int i) const;

 private:
  char* memory_;
  int count_;
  size_t bytes_;
};

}  // namespace treespec::simt::emulation
