// From int32 sums to results, and their stores: csrc/cuda/int8_product.h has the formula. Dtypes and the activation are
// looked at for a few elements at a time: the code exists once in a kernel, and the branches are the same for all
// threads.
#pragma once

#include "device.h"
#include "int8_product.h"
#include "ptx.h"

namespace bigmodel {
namespace {

template <Activation A, int N>
__device__ __forceinline__ void activate_each(float (&y)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) y[i] = activate<A>(y[i]);
}

template <int N>
__device__ __forceinline__ void activate_any(Activation activation, float (&y)[N]) {
  switch (activation) {
    case Activation::none:
      return;
    case Activation::relu:
      return activate_each<Activation::relu>(y);
    case Activation::leaky_relu:
      return activate_each<Activation::leaky_relu>(y);
    case Activation::gelu:
      return activate_each<Activation::gelu>(y);
    case Activation::silu:
      return activate_each<Activation::silu>(y);
    case Activation::sigmoid:
      return activate_each<Activation::sigmoid>(y);
    case Activation::tanh:
      return activate_each<Activation::tanh>(y);
    case Activation::softplus:
      return activate_each<Activation::softplus>(y);
  }
}

// What belongs to kColumns neighbouring outputs.
template <int kColumns>
struct Columns {
  float scale[kColumns], bias[kColumns];
};

__device__ __forceinline__ float bias_of(const Int8Result& r, int column) {
  if (r.bias_dtype == DType::f32) return __ldg(static_cast<const float*>(r.bias) + column);
  const uint16_t half = __ldg(static_cast<const uint16_t*>(r.bias) + column);
  return r.bias_dtype == DType::bf16 ? ptx::bf16_to_f32(half) : ptx::f16_to_f32(half);
}

template <int kColumns>
__device__ __forceinline__ Columns<kColumns> load_columns(const Int8Result& r, int first, int n) {
  Columns<kColumns> c;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const bool used = r.dtype != DType::i32 && first + i < n;
    c.scale[i] = used ? __ldg(r.weight_scale + first + i) : 0.0f;
    c.bias[i] = used && r.bias ? bias_of(r, first + i) : 0.0f;
  }
  return c;
}

__device__ __forceinline__ void store_one(const Int8Result& r, int64_t at, int32_t sum, float y) {
  if (r.dtype == DType::i32) {
    static_cast<int32_t*>(r.out)[at] = sum;
  } else if (r.dtype == DType::f32) {
    static_cast<float*>(r.out)[at] = y;
  } else {
    static_cast<uint16_t*>(r.out)[at] = r.dtype == DType::bf16 ? ptx::f32_to_bf16(y) : ptx::f32_to_f16(y);
  }
}

__device__ __forceinline__ void store_four(const Int8Result& r, int64_t at, const int32_t (&sum)[4],
                                           const float (&y)[4]) {
  if (r.dtype == DType::i32) {
    ptx::store_16(static_cast<int32_t*>(r.out) + at, static_cast<uint32_t>(sum[0]), static_cast<uint32_t>(sum[1]),
                  static_cast<uint32_t>(sum[2]), static_cast<uint32_t>(sum[3]));
  } else if (r.dtype == DType::f32) {
    ptx::store_16(static_cast<float*>(r.out) + at, __float_as_uint(y[0]), __float_as_uint(y[1]), __float_as_uint(y[2]),
                  __float_as_uint(y[3]));
  } else {
    const uint2 halves = r.dtype == DType::bf16
                             ? make_uint2(ptx::f32_to_bf16x2(y[0], y[1]), ptx::f32_to_bf16x2(y[2], y[3]))
                             : make_uint2(ptx::f32_to_f16x2(y[0], y[1]), ptx::f32_to_f16x2(y[2], y[3]));
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(r.out) + at) = halves;
  }
}

__device__ __forceinline__ float x_scale_of(const Int8Result& r, int m) {
  return r.dtype == DType::i32 ? 1.0f : __ldg(r.x_scale + m);
}

// kRows rows from m on, each kApart behind the one before, columns `first` and on; what is outside [m_end, n] is not
// stored.
template <int kRows, int kApart, int kColumns>
__device__ __forceinline__ void store_rows(const Int8Result& r, int m, int m_end, int first, int n,
                                           const Columns<kColumns>& c, const float (&x_scale)[kRows],
                                           const int32_t (&sum)[kRows][kColumns]) {
  float y[kRows * kColumns];  // in one dimension: the activation's code is there once for all
#pragma unroll
  for (int i = 0; i < kRows * kColumns; ++i) {
    const int row = i / kColumns, column = i % kColumns;
    y[i] = __fmul_rn(__fmul_rn(__int2float_rn(sum[row][column]), x_scale[row]), c.scale[column]);
    if (r.bias) y[i] = __fadd_rn(y[i], c.bias[column]);
  }
  if (r.dtype != DType::i32) activate_any(r.activation, y);
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    if (m + i * kApart >= m_end || first >= n) continue;
    const int64_t at = static_cast<int64_t>(m + i * kApart) * n + first;
    float own[kColumns];
#pragma unroll
    for (int j = 0; j < kColumns; ++j) own[j] = y[i * kColumns + j];
    if constexpr (kColumns == 4) {
      if (r.vectors) {
        store_four(r, at, sum[i], own);
        continue;
      }
    }
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
      if (first + j < n) store_one(r, at + j, sum[i][j], own[j]);
  }
}

// Row m alone.
template <int kColumns>
__device__ __forceinline__ void store_sums(const Int8Result& r, int m, int first, int n, const Columns<kColumns>& c,
                                           float x_scale, const int32_t (&sum)[kColumns]) {
  const float scale[1] = {x_scale};
  int32_t row[1][kColumns];
#pragma unroll
  for (int i = 0; i < kColumns; ++i) row[0][i] = sum[i];
  store_rows<1, 1>(r, m, m + 1, first, n, c, scale, row);
}

}  // namespace
}  // namespace bigmodel
