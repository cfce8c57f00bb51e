// Hopper's asynchronous copies of tensor tiles (TMA), the mbarriers that tell of their arrival, and the fences between
// ordinary and asynchronous accesses. For bodies inside #if defined(BIGMODEL_SM90A).
#pragma once

#include "ptx.h"
#include "tensor_map.h"

#if defined(BIGMODEL_EMULATED)

#include "../emulator/ptx_tma.h"

#elif defined(BIGMODEL_SM90A)

namespace bigmodel::ptx {

// An mbarrier is 8 bytes of shared memory, aligned to 8. Its phase is passed when `count` threads have arrived and the
// bytes that were announced are there. One thread initialises it, then fence_mbarrier_init(), then __syncthreads().
__device__ __forceinline__ void mbarrier_init(uint32_t barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
// Makes the thread's mbarrier_init visible to asynchronous copies.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives, and announces `bytes` of copies in this phase.
__device__ __forceinline__ void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Waits until the phase of this parity is passed: 0 for the first, then 1, 0, ... On a new barrier parity 1 has been.
__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred passed;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 passed, [%0], %1;\n"
      "@!passed bra again;\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// A box of the tensor whose first element has these coordinates (innermost first) to shared memory at `to`, aligned to
// 128 bytes (1024 with the 128-byte swizzle, 512 and 256 with the narrower ones). One thread asks; its bytes count on
// the barrier, those outside the tensor too.
__device__ __forceinline__ void tensor_load(uint32_t to, const TensorMap& map, int x, int y, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
          "r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void tensor_load(uint32_t to, const TensorMap& map, int x, int y, int z, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
      "[%5];" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(barrier)
      : "memory");
}
// The other way. The memory may be written again, and the block may end, after commit_stores and wait_stores.
__device__ __forceinline__ void tensor_store(const TensorMap& map, int x, int y, uint32_t from) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map), "r"(x),
               "r"(y), "r"(from)
               : "memory");
}
__device__ __forceinline__ void tensor_store(const TensorMap& map, int x, int y, int z, uint32_t from) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(&map),
               "r"(x), "r"(y), "r"(z), "r"(from)
               : "memory");
}
__device__ __forceinline__ void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until at most kGroupsLeft of the thread's groups still read shared memory.
template <int kGroupsLeft>
__device__ __forceinline__ void wait_stores() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kGroupsLeft) : "memory");
}
__device__ __forceinline__ void prefetch_tensor_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Lets asynchronous reads (tensor_store, wgmma) see what this thread has written to shared memory with ordinary stores
// and cp.async. Each writer does it, before the barrier.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// True in one lane of the warp, all of whose lanes ask.
__device__ __forceinline__ bool elect_one() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred mine;\n"
      "elect.sync _|mine, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, mine;\n"
      "}"
      : "=r"(elected));
  return elected != 0;
}

// Registers move between warpgroups; the kernel needs a cap (__launch_bounds__(threads, 1)), all warps of a warpgroup
// ask.
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256, "setmaxnreg counts in eights.");
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256, "setmaxnreg counts in eights.");
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace bigmodel::ptx

#endif
