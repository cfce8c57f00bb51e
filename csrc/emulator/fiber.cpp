#include "fiber.h"

#include <sys/mman.h>

#include <new>

#include "sanitizer.h"

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

// The memory of stack i. A launch that ended with an error has left frames on it that nobody returned from.
char* stack_memory(std::vector<char*>& stacks, size_t i) {
  while (stacks.size() <= i) stacks.push_back(new_stack());
  allow(stacks[i] + kGuard, kStack - kGuard);
  return stacks[i];
}

void switch_fiber(Fiber& from, Fiber to);

// The stack that was running before the first fiber: the caller's.
const void* callers_stack = nullptr;
size_t callers_size = 0;

}  // namespace

void FiberStacks::entered() {
  const void* before = nullptr;
  size_t size = 0;
  enter_stack(nullptr, &before, &size);
  for (const char* stack : stacks_)
    if (before == stack) return;
  callers_stack = before;
  callers_size = size;
}

void FiberStacks::switch_to(Fiber& from, size_t i, Fiber to) {
  void* frames = nullptr;
  i < stacks_.size() ? leave_stack(&frames, stacks_[i], kStack) : leave_stack(&frames, callers_stack, callers_size);
  switch_fiber(from, to);
  enter_stack(frames, nullptr, nullptr);
}

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

namespace {
void switch_fiber(Fiber& from, Fiber to) { bigmodel_switch_stack(&from, to); }
}  // namespace

Fiber FiberStacks::start(size_t i, void (*entry)()) {
  char* memory = stack_memory(stacks_, i);
  // What the switch pops: six registers, then the address it returns to. At a function's entry the stack is 8 bytes
  // past a multiple of 16; the null above stands for a return address.
  void** top = reinterpret_cast<void**>(memory + size_of_stack(i));
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int r = 0; r < 6; ++r) *--top = nullptr;
  return top;
}

#else

namespace {
void switch_fiber(Fiber& from, Fiber to) {
  ucontext_t here;  // on the stack of the fiber that it saves
  from = &here;
  swapcontext(&here, static_cast<ucontext_t*>(to));
}
}  // namespace

Fiber FiberStacks::start(size_t i, void (*entry)()) {
  char* memory = stack_memory(stacks_, i);
  auto* context = new (memory + kGuard) ucontext_t;  // at the far end, where the stack does not reach
  getcontext(context);
  context->uc_stack.ss_sp = memory + 2 * kGuard;
  context->uc_stack.ss_size = size_of_stack(i) - 2 * kGuard;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}

#endif

}  // namespace bigmodel::emulator
