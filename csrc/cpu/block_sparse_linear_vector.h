// The block kernels over whichever vector type simd_<isa>.h has defined before this file is included; everything is in
// an anonymous namespace.
#pragma once

#include "block_sparse_linear.h"
#include "row_sums_vector.h"

namespace bigmodel {
namespace {

// R rows, all columns of S, V vectors of them at a time.
template <DType D, int S, int R, int V>
void multiply(const float* x, int64_t panel, const void* blocks, const int32_t* col, int64_t count, bool add,
              float* y) {
  constexpr int kCopies = copies_of(R * V), kBytes = D == DType::f32 ? 4 : 2;
  constexpr int64_t kAhead = 4096 / kBytes;  // blocks are read front to back, but the processor's prefetching stops
                                             // at each 4 KiB page
  for (int n = 0; n < S; n += V * kLanes) {
    Floats sum[kCopies][R][V];
    begin_sums(y + n, S, add, sum);
    for (int64_t i = 0; i < count; ++i) {
      const float* from = x + col[i] * panel;
      for (int k = 0; k < S; k += kCopies) {
#pragma GCC unroll 4
        for (int u = 0; u < kCopies; ++u) {
          const int64_t at = (i * S + k + u) * S + n;
          Floats w[V];
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) w[v] = load<D>(blocks, at + v * kLanes);
          for (int b = 0; b < V * kLanes * kBytes; b += 64)
            _mm_prefetch(static_cast<const char*>(blocks) + (at + kAhead) * kBytes + b, _MM_HINT_T0);
#pragma GCC unroll 24
          for (int r = 0; r < R; ++r) {
            const Floats one = set(from[r * S + k + u]);
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sum[u][r][v] = fma(one, w[v], sum[u][r][v]);
          }
        }
      }
    }
    end_sums(sum, y + n, S);
  }
}

// R inputs by V vectors of outputs at a time.
template <int S, int R, int V>
void grad_values(const float* x, const float* grad, int64_t rows, bool add, float* dblock) {
  for (int n = 0; n < S; n += V * kLanes) {
    for (int k = 0; k < S; k += R) {
      float* to = dblock + k * S + n;
      Floats sum[R][V];
#pragma GCC unroll 24
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[r][v] = add ? load<DType::f32>(to, r * S + v * kLanes) : set(0.0f);
      for (int64_t m = 0; m < rows; ++m) {
        Floats g[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) g[v] = load<DType::f32>(grad, m * S + n + v * kLanes);
#pragma GCC unroll 24
        for (int r = 0; r < R; ++r) {
          const Floats one = set(x[m * S + k + r]);
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) sum[r][v] = fma(one, g[v], sum[r][v]);
        }
      }
#pragma GCC unroll 24
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) store<DType::f32>(to, r * S + v * kLanes, sum[r][v]);
    }
  }
}

// Shares rows out among multiply<D, S, R, V> with as many sums as the registers hold: defined by the including file.
template <DType D, int S>
void multiply_rows(const float* x, int64_t rows, const void* blocks, const int32_t* col, int64_t count, bool add,
                   float* y);

template <DType D>
void multiply_dtype(const float* x, int64_t rows, const void* blocks, int64_t size, const int32_t* col, int64_t count,
                    bool add, float* y) {
  if (size == 16) return multiply_rows<D, 16>(x, rows, blocks, col, count, add, y);
  if (size == 32) return multiply_rows<D, 32>(x, rows, blocks, col, count, add, y);
  return multiply_rows<D, 64>(x, rows, blocks, col, count, add, y);
}

void multiply_entry(const float* x, int64_t rows, const void* blocks, DType dtype, int64_t size, const int32_t* col,
                    int64_t count, bool add, float* y) {
  if (dtype == DType::f32) return multiply_dtype<DType::f32>(x, rows, blocks, size, col, count, add, y);
  if (dtype == DType::bf16) return multiply_dtype<DType::bf16>(x, rows, blocks, size, col, count, add, y);
  return multiply_dtype<DType::f16>(x, rows, blocks, size, col, count, add, y);
}

}  // namespace
}  // namespace bigmodel
