// The sums that a kernel keeps in registers: R rows by V vectors of outputs. Over whichever vector type simd_<isa>.h
// has defined before this file is included; everything is in an anonymous namespace.
#pragma once

#include <cstdint>

#include "../common/view.h"

namespace bigmodel {
namespace {

// A fused multiply-add waits four cycles for the one before it on the same register and two start each cycle, so
// fewer than 8 sums are kept several times and added up at the end.
constexpr int copies_of(int sums) { return sums >= 8 ? 1 : sums >= 4 ? 2 : 4; }

// sum = y, or 0 unless `add`; y has `stride` floats between rows. Copies after the first begin with 0.
template <int C, int R, int V>
inline __attribute__((always_inline)) void begin_sums(const float* y, int stride, bool add, Floats (&sum)[C][R][V]) {
#pragma GCC unroll 4
  for (int u = 0; u < C; ++u)
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v)
        sum[u][r][v] = u == 0 && add ? load<DType::f32>(y, r * stride + v * kLanes) : set(0.0f);
}

// y = the copies' total.
template <int C, int R, int V>
inline __attribute__((always_inline)) void end_sums(const Floats (&sum)[C][R][V], float* y, int stride) {
#pragma GCC unroll 24
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      Floats total = sum[0][r][v];
#pragma GCC unroll 4
      for (int u = 1; u < C; ++u) total = total + sum[u][r][v];
      store<DType::f32>(y, r * stride + v * kLanes, total);
    }
}

}  // namespace
}  // namespace bigmodel
