// Elements of tensors on the device: their widening, rounding and tensor-core product.
#pragma once

#include "../common/view.h"
#include "ptx.h"
#include "ptx_mma.h"

namespace bigmodel {
namespace {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ float widen(Bf16 v) { return ptx::bf16_to_f32(v.bits); }
__device__ __forceinline__ float widen(F16 v) { return ptx::f16_to_f32(v.bits); }

__device__ __forceinline__ void round_to(float v, float& out) { out = v; }
__device__ __forceinline__ void round_to(float v, Bf16& out) { out.bits = ptx::f32_to_bf16(v); }
__device__ __forceinline__ void round_to(float v, F16& out) { out.bits = ptx::f32_to_f16(v); }

__device__ __forceinline__ void multiply_tile(Bf16, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  ptx::mma_bf16(d, a, b);
}
__device__ __forceinline__ void multiply_tile(F16, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  ptx::mma_f16(d, a, b);
}
__device__ __forceinline__ void multiply_tile(int8_t, int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  ptx::mma_s8(d, a, b);
}

// Element i of an array of any floating dtype.
__device__ __forceinline__ float element_at(const void* p, DType dtype, int64_t i) {
  if (dtype == DType::f32) return __ldg(static_cast<const float*>(p) + i);
  const uint16_t bits = __ldg(static_cast<const uint16_t*>(p) + i);
  return dtype == DType::bf16 ? ptx::bf16_to_f32(bits) : ptx::f16_to_f32(bits);
}

__device__ __forceinline__ void store_element(void* p, DType dtype, int64_t i, float v) {
  if (dtype == DType::f32)
    static_cast<float*>(p)[i] = v;
  else
    static_cast<uint16_t*>(p)[i] = dtype == DType::bf16 ? ptx::f32_to_bf16(v) : ptx::f32_to_f16(v);
}

}  // namespace
}  // namespace bigmodel
