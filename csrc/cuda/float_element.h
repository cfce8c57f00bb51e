// The floating dtypes as tensor-core kernels see them: how they are stored, widened and multiplied.
#pragma once

#include "../common/view.h"
#include "ptx_mma.h"

namespace bigmodel {

template <DType>
struct FloatElement;

template <>
struct FloatElement<DType::f32> {
  using Type = float;
  static __device__ __forceinline__ float narrow(float v) { return v; }
};

template <>
struct FloatElement<DType::bf16> {
  using Type = uint16_t;
  static __device__ __forceinline__ uint16_t narrow(float v) { return ptx::f32_to_bf16(v); }
  static __device__ __forceinline__ uint32_t narrow(float low, float high) { return ptx::f32_to_bf16x2(low, high); }
  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    ptx::mma_bf16(d, a, b);
  }
  template <int kSelector>
  static __device__ __forceinline__ void multiply_sparse(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                                                         uint32_t metadata) {
    ptx::mma_sparse_bf16<kSelector>(d, a, b, metadata);
  }
};

template <>
struct FloatElement<DType::f16> {
  using Type = uint16_t;
  static __device__ __forceinline__ uint16_t narrow(float v) { return ptx::f32_to_f16(v); }
  static __device__ __forceinline__ uint32_t narrow(float low, float high) { return ptx::f32_to_f16x2(low, high); }
  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    ptx::mma_f16(d, a, b);
  }
  template <int kSelector>
  static __device__ __forceinline__ void multiply_sparse(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                                                         uint32_t metadata) {
    ptx::mma_sparse_f16<kSelector>(d, a, b, metadata);
  }
};

}  // namespace bigmodel
