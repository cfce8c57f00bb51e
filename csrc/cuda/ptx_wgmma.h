// Hopper's matrix products of a warpgroup (four warps, the first's index a multiple of 4), asynchronous, both operands
// in shared memory and K-major. For bodies inside #if defined(BIGMODEL_SM90A).
//
// A matrix of rows (64 of A, N of B) x 32 bytes along K, in a swizzle of W = 32, 64 or 128 bytes: rows of W bytes,
// eight of them a pattern of 8 W bytes that is aligned to as much, the next eight `stride` bytes on; the descriptor's
// address may be 32, 64 or 96 bytes inside the row. Without swizzle: 8 rows of 16 bytes lie together, `stride` bytes
// from eight rows to the next, `leading` bytes from 16 bytes along K to the next.
//
// Accumulators, warp w of the warpgroup, group = lane / 4, t = lane % 4: d[4 j], d[4 j + 1] = (16 w + group,
// 8 j + 2 t + {0, 1}); d[4 j + 2], d[4 j + 3] the same in row 16 w + group + 8.
#pragma once

#include "ptx.h"
#include "tensor_map.h"

namespace bigmodel::ptx {

__device__ __forceinline__ uint64_t matrix_descriptor(uint32_t address, TensorSwizzle swizzle, uint32_t stride,
                                                      uint32_t leading = 16) {
  const uint64_t mode = swizzle == TensorSwizzle::none ? 0 : 4 - static_cast<uint64_t>(swizzle);
  return (address & 0x3ffffu) >> 4 | static_cast<uint64_t>(leading >> 4 & 0x3fffu) << 16 |
         static_cast<uint64_t>(stride >> 4 & 0x3fffu) << 32 | mode << 62;
}

}  // namespace bigmodel::ptx

#if defined(BIGMODEL_EMULATED)

#include "../emulator/ptx_wgmma.h"

#elif defined(BIGMODEL_SM90A)

namespace bigmodel::ptx {

// Before the first product of a group: orders it behind what was written to the accumulators.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most kGroupsLeft groups, the latest ones, are under way; only then may their accumulators be touched.
template <int kGroupsLeft>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroupsLeft) : "memory");
}
// Keeps the compiler from moving accesses to an accumulator across a wait.
template <typename T, int kRegisters>
__device__ __forceinline__ void wgmma_hold(T (&d)[kRegisters]) {
  static_assert(sizeof(T) == 4, "Accumulators are 32-bit registers.");
#pragma unroll
  for (int i = 0; i < kRegisters; ++i) {
    if constexpr (static_cast<T>(0.5f) == static_cast<T>(0))
      asm volatile("" : "+r"(d[i])::"memory");
    else
      asm volatile("" : "+f"(d[i])::"memory");
  }
}

// The registers' names in an instruction, and the constraints that go with them.
#define BIGMODEL_WGMMA_32                                                \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define BIGMODEL_WGMMA_64                                                            \
  BIGMODEL_WGMMA_32                                                                  \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define BIGMODEL_WGMMA_96                                                            \
  BIGMODEL_WGMMA_64                                                                  \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define BIGMODEL_WGMMA_128                                                                       \
  BIGMODEL_WGMMA_96                                                                              \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define BIGMODEL_WGMMA_BIND_8(c, i) \
  c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3]), c(d[i + 4]), c(d[i + 5]), c(d[i + 6]), c(d[i + 7])
#define BIGMODEL_WGMMA_BIND_32(c, i)                                                              \
  BIGMODEL_WGMMA_BIND_8(c, i), BIGMODEL_WGMMA_BIND_8(c, i + 8), BIGMODEL_WGMMA_BIND_8(c, i + 16), \
      BIGMODEL_WGMMA_BIND_8(c, i + 24)
#define BIGMODEL_WGMMA_BIND_64(c, i) BIGMODEL_WGMMA_BIND_32(c, i), BIGMODEL_WGMMA_BIND_32(c, i + 32)
#define BIGMODEL_WGMMA_BIND_96(c, i) BIGMODEL_WGMMA_BIND_64(c, i), BIGMODEL_WGMMA_BIND_32(c, i + 64)
#define BIGMODEL_WGMMA_BIND_128(c, i) BIGMODEL_WGMMA_BIND_64(c, i), BIGMODEL_WGMMA_BIND_64(c, i + 64)

// d = a b, plus d if `accumulate`. registers = N / 2.
#define BIGMODEL_WGMMA(name, type, constraint, registers, shape, types, tail, a_name, b_name, p_name)  \
  __device__ __forceinline__ void name(type(&d)[registers], uint64_t a, uint64_t b, bool accumulate) { \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " p_name                                        \
                 ", 0;\n"                                                                              \
                 "wgmma.mma_async.sync.aligned." shape "." types " {" BIGMODEL_WGMMA_##registers       \
                 "}, " a_name ", " b_name ", add" tail ";\n}"                                          \
                 : BIGMODEL_WGMMA_BIND_##registers(constraint, 0)                                      \
                 : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));                                 \
  }
// K = 32 int8, and K = 16 of 16-bit floats: 32 bytes of each row.
#define BIGMODEL_WGMMA_ALL(registers, n, a_name, b_name, p_name)                                                      \
  BIGMODEL_WGMMA(wgmma_s8, int32_t, "+r", registers, "m64n" n "k32", "s32.s8.s8", "", a_name, b_name, p_name)         \
  BIGMODEL_WGMMA(wgmma_bf16, float, "+f", registers, "m64n" n "k16", "f32.bf16.bf16", ", 1, 1, 0, 0", a_name, b_name, \
                 p_name)                                                                                              \
  BIGMODEL_WGMMA(wgmma_f16, float, "+f", registers, "m64n" n "k16", "f32.f16.f16", ", 1, 1, 0, 0", a_name, b_name,    \
                 p_name)
BIGMODEL_WGMMA_ALL(32, "64", "%32", "%33", "%34")
BIGMODEL_WGMMA_ALL(64, "128", "%64", "%65", "%66")
BIGMODEL_WGMMA_ALL(96, "192", "%96", "%97", "%98")
BIGMODEL_WGMMA_ALL(128, "256", "%128", "%129", "%130")
#undef BIGMODEL_WGMMA_ALL
#undef BIGMODEL_WGMMA
#undef BIGMODEL_WGMMA_BIND_128
#undef BIGMODEL_WGMMA_BIND_96
#undef BIGMODEL_WGMMA_BIND_64
#undef BIGMODEL_WGMMA_BIND_32
#undef BIGMODEL_WGMMA_BIND_8
#undef BIGMODEL_WGMMA_128
#undef BIGMODEL_WGMMA_96
#undef BIGMODEL_WGMMA_64
#undef BIGMODEL_WGMMA_32

}  // namespace bigmodel::ptx

#endif
