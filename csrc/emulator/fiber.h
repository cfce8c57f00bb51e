// Stacks that are switched between by hand: a fiber for each CUDA thread of a block.
#pragma once

#include <cstddef>
#include <vector>

namespace bigmodel::emulator {

// A suspended fiber is its stack pointer (x86-64), or the address of its saved context (elsewhere).
using Fiber = void*;

// Stacks for `count` fibers at a time, each with a page below it that may not be touched. They are kept and reused.
class FiberStacks {
 public:
  // A fiber that calls `entry` on stack i when it is switched to for the first time. `entry` may not return.
  Fiber start(size_t i, void (*entry)());
  void entered();  // what `entry` calls first

  // Saves the running fiber in `from` and goes on with `to`, which is on stack i; kNoStack: on the caller's.
  void switch_to(Fiber& from, size_t i, Fiber to);
  static constexpr size_t kNoStack = static_cast<size_t>(-1);

 private:
  std::vector<char*> stacks_;
};

}  // namespace bigmodel::emulator
