#include "fiber.h"

#include <sys/mman.h>

#include <new>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace bigmodel::emulator {

namespace {

constexpr size_t kStack = 128 << 10, kGuard = 4 << 10;

// Stacks begin at different places of a page: from equal ones they would all fall into the same few lines of the cache.
size_t size_of_stack(size_t i) { return kStack - i % 61 * 192; }

char* new_stack() {
  void* memory = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE) != 0) throw std::bad_alloc();
  return static_cast<char*>(memory);
}

}  // namespace

#if defined(__x86_64__)

// The registers that a called function must preserve go onto the old stack and come from the new one.
asm(R"(
.text
.type bigmodel_switch_stack, @function
bigmodel_switch_stack:
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
.size bigmodel_switch_stack, . - bigmodel_switch_stack
)");
extern "C" void bigmodel_switch_stack(void** from, void* to);

void switch_fiber(Fiber& from, Fiber to) { bigmodel_switch_stack(&from, to); }

Fiber FiberStacks::start(size_t i, void (*entry)()) {
  while (stacks_.size() <= i) stacks_.push_back(new_stack());
  // What the switch pops: six registers, then the address it returns to. At a function's entry the stack is 8 bytes
  // past a multiple of 16; the null above stands for a return address.
  void** top = reinterpret_cast<void**>(stacks_[i] + size_of_stack(i));
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int r = 0; r < 6; ++r) *--top = nullptr;
  return top;
}

#else

void switch_fiber(Fiber& from, Fiber to) {
  ucontext_t here;  // on the stack of the fiber that it saves
  from = &here;
  swapcontext(&here, static_cast<ucontext_t*>(to));
}

Fiber FiberStacks::start(size_t i, void (*entry)()) {
  while (stacks_.size() <= i) stacks_.push_back(new_stack());
  auto* context = new (stacks_[i] + kGuard) ucontext_t;  // at the far end, where the stack does not reach
  getcontext(context);
  context->uc_stack.ss_sp = stacks_[i] + 2 * kGuard;
  context->uc_stack.ss_size = size_of_stack(i) - 2 * kGuard;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}

#endif

}  // namespace bigmodel::emulator
