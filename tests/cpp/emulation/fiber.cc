// SPDX-License-Identifier: Apache-2.0
#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_UNPOISON_MEMORY_REGION(address, size) static_cast<void>(0)
#endif

namespace treespec::simt::emulation {

#if defined(__x86_64__)

// By hand, because swapcontext makes a system call for the signal mask each time. Saves what the
// System V ABI lets a callee expect unchanged.
extern "C" void treespec_switch_stack(void** from, void* to);
asm(R"(
.text
.hidden treespec_switch_stack
.globl treespec_switch_stack
.type treespec_switch_stack, @function
treespec_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size treespec_switch_stack, . - treespec_switch_stack
)");

void prepare(Fiber& fiber, void (*entry)(), char* stack, size_t bytes) {
  ASAN_UNPOISON_MEMORY_REGION(stack, bytes);  // a fiber that failed has left its marks
  constexpr int kSaved = 6;
  auto top = reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t{15};
  auto* slot = reinterpret_cast<void**>(top);
  *--slot = nullptr;  // the return address of `entry`, which keeps the stack aligned
  *--slot = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSaved; ++i) *--slot = nullptr;
  fiber.stack_pointer = slot;
}

void switch_fiber(Fiber& from, Fiber& to) {
  treespec_switch_stack(&from.stack_pointer, to.stack_pointer);
}

#else

void prepare(Fiber& fiber, void (*entry)(), char* stack, size_t bytes) {
  ASAN_UNPOISON_MEMORY_REGION(stack, bytes);  // a fiber that failed has left its marks
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}

void switch_fiber(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

#endif

namespace {
constexpr size_t kPage = 4096;
}  // namespace

Stacks::Stacks(int count, size_t bytes) : count_(count), bytes_(bytes) {
  const size_t size = static_cast<size_t>(count) * (bytes + kPage);
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<char*>(memory);
  for (int i = 0; i < count; ++i) mprotect((*this)[i] - kPage, kPage, PROT_NONE);
}

Stacks::~Stacks() { munmap(memory_, static_cast<size_t>(count_) * (bytes_ + kPage)); }

char* Stacks::operator[](int i) const {
  return memory_ + static_cast<size_t>(i) * (bytes_ + kPage) + kPage;
}

}  // namespace treespec::simt::emulation
