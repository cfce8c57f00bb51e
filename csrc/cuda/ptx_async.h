// cp.async: copies from global to shared memory that go on while the thread computes.
#pragma once

#include "ptx.h"

#if defined(BIGMODEL_EMULATED)

#include "../emulator/ptx_async.h"

#else

namespace bigmodel::ptx {

// `bytes` (0 to 16) from `from` and zeros behind them; both addresses are multiples of 16. Past the L1 cache.
__device__ __forceinline__ void copy_async_16(uint32_t to, const void* from, int bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// The same for 4 or 8 bytes, for rows that are not aligned to 16; through the L1 cache.
template <int kBytes>
__device__ __forceinline__ void copy_async_small(uint32_t to, const void* from, int bytes = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8, "cp.async.ca of 4 or 8 bytes.");
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(kBytes), "r"(bytes)
               : "memory");
}

// What the thread has asked for since the last commit becomes a group.
__device__ __forceinline__ void commit_async() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kGroupsLeft of the thread's groups, the latest ones, are under way.
template <int kGroupsLeft>
__device__ __forceinline__ void wait_async() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
}

}  // namespace bigmodel::ptx

#endif
