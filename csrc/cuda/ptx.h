// PTX instructions behind named wrappers. 16-bit floats are their bits here: CUDA's own headers for them would double
// the compile time of a small kernel.
#pragma once

#include <cstdint>

namespace bigmodel::ptx {

__device__ __forceinline__ uint16_t f32_to_bf16(float v) {
  uint16_t h;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(v));
  return h;
}

__device__ __forceinline__ float bf16_to_f32(uint16_t h) { return __uint_as_float(static_cast<uint32_t>(h) << 16); }

__device__ __forceinline__ uint16_t f32_to_f16(float v) {
  uint16_t h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(v));
  return h;
}

__device__ __forceinline__ float f16_to_f32(uint16_t h) {
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(h));
  return v;
}

}  // namespace bigmodel::ptx
