// Rounding rows to int8, for the kernels that do it. The search for the largest magnitude works on bit patterns without
// their sign, whose order as integers is that of the numbers, with infinity and then NaN above all of them.
#pragma once

#include "device.h"
#include "int8_product.h"
#include "ptx.h"

namespace bigmodel {
namespace {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(Bf16 v) { return ptx::bf16_to_f32(v.bits); }
__device__ __forceinline__ float to_float(F16 v) { return ptx::f16_to_f32(v.bits); }

// 16 bytes of a row.
template <typename T>
struct Chunk {
  static constexpr int kElements = 16 / sizeof(T);
  union {
    uint4 bits;
    T element[kElements];
  };
};

// From element i on; zeros behind the row's end at k. With `vectors`, a chunk is in the row or behind it.
template <typename T>
__device__ __forceinline__ Chunk<T> load_chunk(const T* row, int i, int k, bool vectors) {
  Chunk<T> c;
  c.bits = make_uint4(0, 0, 0, 0);
  if (vectors) {
    if (i < k) c.bits = __ldg(reinterpret_cast<const uint4*>(row + i));
  } else {
#pragma unroll
    for (int j = 0; j < Chunk<T>::kElements; ++j)
      if (i + j < k) c.element[j] = row[i + j];
  }
  return c;
}

template <typename T>
__device__ __forceinline__ uint32_t largest_magnitude(const Chunk<T>& c, uint32_t largest) {
#pragma unroll
  for (int j = 0; j < Chunk<T>::kElements; ++j)
    largest = max(largest, __float_as_uint(to_float(c.element[j])) & 0x7fffffffu);
  return largest;
}

struct RowScale {
  float inverse, scale;  // an inverse of 0 makes q = 0 of NaN and infinity too
};

// For the magnitude's bits, or for the scale that is given.
__device__ __forceinline__ RowScale row_scale(uint32_t bits, const float* fixed) {
  constexpr float kSmallestQuantizable = 0x1p-119f;
  constexpr uint32_t kInfinity = 0x7f800000u, kNan = 0x7fc00000u;
  const bool finite = bits < kInfinity;
  RowScale r = {0.0f, 0.0f};
  if (fixed) {
    const float s = __ldg(fixed);
    const bool valid = s >= 0.0f && __float_as_uint(s) < kInfinity;
    if (valid && s >= kSmallestQuantizable) r = {__fdiv_rn(1.0f, s), s};
    if (!valid) r.scale = __uint_as_float(kNan);
  } else if (finite && __uint_as_float(bits) >= kSmallestQuantizable) {
    r = {__fdiv_rn(127.0f, __uint_as_float(bits)), __fdiv_rn(__uint_as_float(bits), 127.0f)};
  }
  if (!finite) r.scale = __uint_as_float(kNan);
  return r;
}

// Four elements in a register, the first in the low byte.
template <typename T>
__device__ __forceinline__ uint32_t rounded(const Chunk<T>& c, int first, float inverse) {
  uint32_t q = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    float scaled = __fmul_rn(to_float(c.element[first + j]), inverse);
    scaled = scaled < -127.0f ? -127.0f : scaled;  // only with a given scale; NaN stays and becomes 0
    q |= (static_cast<uint32_t>(ptx::f32_to_s8(scaled)) & 0xffu) << (8 * j);
  }
  return q;
}

// A chunk's elements become as many bytes; `to` is a multiple of that.
template <typename T>
__device__ __forceinline__ void store_rounded(int8_t* to, const Chunk<T>& c, float inverse) {
  if constexpr (Chunk<T>::kElements == 8) {
    *reinterpret_cast<uint2*>(to) = make_uint2(rounded(c, 0, inverse), rounded(c, 4, inverse));
  } else {
    *reinterpret_cast<uint32_t*>(to) = rounded(c, 0, inverse);
  }
}

}  // namespace
}  // namespace bigmodel
