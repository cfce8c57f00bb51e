// Arithmetic on pairs of 16-bit floats.
#pragma once

#include "ptx.h"

#if defined(BIGMODEL_EMULATED)

#include "../emulator/ptx_float16.h"

#else

namespace bigmodel::ptx {

__device__ __forceinline__ uint32_t sub_f16x2(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

// As a * 1 + (-b), rounded once: bfloat16 has no subtraction of its own before compute capability 9.0.
__device__ __forceinline__ uint32_t sub_bf16x2(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(0x3f803f80u), "r"(b ^ 0x80008000u));
  return d;
}

}  // namespace bigmodel::ptx

#endif
