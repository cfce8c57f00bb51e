// Elements of tensors in registers: floats of any dtype in 16-byte vectors, parameters of another dtype beside them,
// and what fused dropout computes of one element.
#pragma once

#include "../common/dropout.h"
#include "ptx.h"

namespace bigmodel {

namespace {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

template <DType D>
struct ElementOf {
  using type = float;
};
template <>
struct ElementOf<DType::bf16> {
  using type = Bf16;
};
template <>
struct ElementOf<DType::f16> {
  using type = F16;
};

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(Bf16 v) { return ptx::bf16_to_f32(v.bits); }
__device__ __forceinline__ float to_float(F16 v) { return ptx::f16_to_f32(v.bits); }
__device__ __forceinline__ void from_float(float v, float& out) { out = v; }
__device__ __forceinline__ void from_float(float v, Bf16& out) { out.bits = ptx::f32_to_bf16(v); }
__device__ __forceinline__ void from_float(float v, F16& out) { out.bits = ptx::f32_to_f16(v); }

// The elements of 16 bytes, of the pointer's type.
template <int N, typename T>
__device__ __forceinline__ void widen(const uint4& piece, const T*, float (&v)[N], int first = 0) {
  union {
    uint4 bits;
    T element[16 / sizeof(T)];
  };
  bits = piece;
#pragma unroll
  for (int j = 0; j < static_cast<int>(16 / sizeof(T)); ++j) v[first + j] = to_float(element[j]);
}

// N consecutive elements, read in 16-byte pieces (p is aligned) and widened.
template <int N, typename T>
__device__ __forceinline__ void load_vector(const T* p, float (&v)[N]) {
  constexpr int kPiece = 16 / sizeof(T);
  static_assert(N % kPiece == 0, "A vector is whole 16-byte pieces.");
#pragma unroll
  for (int i = 0; i < N; i += kPiece) widen(__ldg(reinterpret_cast<const uint4*>(p + i)), p, v, i);
}

__device__ __forceinline__ void store_vector(float* p, const float (&v)[4]) {
  ptx::store_16(p, __float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3]));
}

template <typename T>
__device__ __forceinline__ void store_vector(T* p, const float (&v)[8]) {
  uint32_t pair[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    T low, high;
    from_float(v[2 * j], low);
    from_float(v[2 * j + 1], high);
    pair[j] = low.bits | static_cast<uint32_t>(high.bits) << 16;
  }
  ptx::store_16(p, pair[0], pair[1], pair[2], pair[3]);
}

__device__ __forceinline__ uint32_t keep_bits(uint64_t seed, uint64_t block, uint32_t threshold) {
  const PhiloxBlock random = philox_block(seed, block);
  uint32_t bits = 0;
#pragma unroll
  for (int i = 0; i < kPhiloxHalves; ++i) bits |= static_cast<uint32_t>(philox_half(random, i) >= threshold) << i;
  return bits;
}

// A vector of parameters (a bias, a norm's weight) is float32 or of the dtype T of the tensor that it applies to.
template <typename T>
__device__ __forceinline__ float parameter_at(const void* p, DType dtype, int64_t i) {
  if (dtype == DType::f32) return __ldg(static_cast<const float*>(p) + i);
  return to_float(static_cast<const T*>(p)[i]);
}

template <Activation A, bool kBackward>
__device__ __forceinline__ float element(float z, float other, bool has_other, bool keep, float scale) {
  if (kBackward) return keep ? other * slope<A>(z) * scale : 0.0f;
  const float y = __fmul_rn(activate<A>(z), scale);  // not fused with the addition: as on the CPU, in every kernel
  return keep ? (has_other ? __fadd_rn(y, other) : y) : other;
}

template <typename T>
__device__ __forceinline__ float bias_at(const DropoutArgs& a, int64_t column) {
  return parameter_at<T>(a.bias, a.bias_dtype, column);
}

// The same for all elements of a vector, where the activation is known at run time only: one branch to a vector.
template <bool kBackward, int N>
__device__ __forceinline__ void elements(Activation activation, float (&z)[N], const float (&other)[N], bool has_other,
                                         uint32_t keep, float scale) {
#define BIGMODEL_CASE(name)                                                                    \
  case Activation::name:                                                                       \
    _Pragma("unroll") for (int j = 0; j < N; ++j) z[j] =                                       \
        element<Activation::name, kBackward>(z[j], other[j], has_other, keep >> j & 1, scale); \
    break
  switch (activation) {
    BIGMODEL_CASE(none);
    BIGMODEL_CASE(relu);
    BIGMODEL_CASE(leaky_relu);
    BIGMODEL_CASE(gelu);
    BIGMODEL_CASE(silu);
    BIGMODEL_CASE(sigmoid);
    BIGMODEL_CASE(tanh);
    BIGMODEL_CASE(softplus);
  }
#undef BIGMODEL_CASE
}

__device__ __forceinline__ float activated(Activation activation, float z) {
  float v[1] = {z};
  const float none[1] = {};
  elements<false>(activation, v, none, false, 1, 1.0f);
  return v[0];
}

inline bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace
}  // namespace bigmodel
