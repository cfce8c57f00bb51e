// The block kernels over whichever vector type simd_<isa>.h has defined before this file is included; everything is in
// an anonymous namespace. kMostRows, kMostColumns: how many sums (rows times vectors) the registers hold.
#pragma once

#include "block_sparse_linear.h"

namespace bigmodel {
namespace {

// A fused multiply-add waits four cycles for the one before it on the same register and two start each cycle, so
// fewer than 8 sums are kept several times and added up at the end.
constexpr int copies_of(int sums) { return sums >= 8 ? 1 : sums >= 4 ? 2 : 4; }

// R rows, all columns of S, V vectors of them at a time.
template <DType D, int S, int R, int V>
void multiply(const float* x, int64_t panel, const void* blocks, const int32_t* col, int64_t count, bool add,
              float* y) {
  constexpr int kCopies = copies_of(R * V), kBytes = D == DType::f32 ? 4 : 2;
  constexpr int64_t kAhead = 4096 / kBytes;  // blocks are read front to back, but the processor's prefetching stops
                                             // at each 4 KiB page
  for (int n = 0; n < S; n += V * kLanes) {
    Floats sum[kCopies][R][V];
#pragma GCC unroll 4
    for (int u = 0; u < kCopies; ++u)
#pragma GCC unroll 24
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v)
          sum[u][r][v] = u == 0 && add ? load<DType::f32>(y, r * S + n + v * kLanes) : set(0.0f);
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
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        Floats total = sum[0][r][v];
#pragma GCC unroll 4
        for (int u = 1; u < kCopies; ++u) total = total + sum[u][r][v];
        store<DType::f32>(y, r * S + n + v * kLanes, total);
      }
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

}  // namespace
}  // namespace bigmodel
