// A 32-bit lane holds four weights of one output: each is shifted to the top, brought back with its sign and converted,
// three operations beside `rows` multiplications. One row has memory as its limit, six keep the multipliers busy.
#include <immintrin.h>

#include "int8_weight_only_linear.h"

namespace bigmodel {
namespace {

constexpr int kVectors = 4;  // 64 outputs
constexpr int kMaxRows = 6;
constexpr int64_t kAhead = 4096;  // bytes between the weights in use and those being fetched

template <int j>
inline __m512 weights(__m512i four) {
  const __m512i top = j == 3 ? four : _mm512_slli_epi32(four, 24 - 8 * j);
  return _mm512_cvtepi32_ps(_mm512_srai_epi32(top, 24));
}

// Up to 2 rows, two sets of sums hide the latency of one.
template <int rows>
void tile(const FloatByInt8& p, const float* x, float* y) {
  constexpr int kSets = rows <= 2 ? 2 : 1;
  __m512 acc[kSets][rows][kVectors];
#pragma GCC unroll 8
  for (int s = 0; s < kSets; ++s)
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) acc[s][r][c] = _mm512_setzero_ps();
  const int8_t* w = p.weight;
  const int64_t stride = p.x_stride;
  for (int64_t g = 0; g < p.groups; ++g, w += 256, x += 4) {
    __m512i four[kVectors];
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) {
      four[c] = _mm512_loadu_si512(w + c * 64);
      if (rows <= 2) _mm_prefetch(reinterpret_cast<const char*>(w + c * 64 + kAhead), _MM_HINT_T0);
    }
#define BIGMODEL_STEP(j)                                                                   \
  {                                                                                        \
    __m512 v[kVectors];                                                                    \
    _Pragma("GCC unroll 8") for (int c = 0; c < kVectors; ++c) v[c] = weights<j>(four[c]); \
    _Pragma("GCC unroll 8") for (int r = 0; r < rows; ++r) {                               \
      const __m512 a = _mm512_set1_ps(x[r * stride + j]);                                  \
      _Pragma("GCC unroll 8") for (int c = 0; c < kVectors; ++c) acc[j % kSets][r][c] =    \
          _mm512_fmadd_ps(a, v[c], acc[j % kSets][r][c]);                                  \
    }                                                                                      \
  }
    BIGMODEL_STEP(0)
    BIGMODEL_STEP(1)
    BIGMODEL_STEP(2)
    BIGMODEL_STEP(3)
#undef BIGMODEL_STEP
  }
#pragma GCC unroll 8
  for (int c = 0; c < kVectors; ++c) {
    const __m512 scale = _mm512_loadu_ps(p.scale + c * 16);
    const __m512 bias = p.bias ? _mm512_loadu_ps(p.bias + c * 16) : _mm512_set1_ps(-0.0f);  // y + -0 is y for every y
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      __m512 sum = acc[0][r][c];
      if (kSets == 2) sum = _mm512_add_ps(sum, acc[kSets - 1][r][c]);
      _mm512_storeu_ps(y + r * p.y_stride + c * 16, _mm512_add_ps(_mm512_mul_ps(sum, scale), bias));
    }
  }
}

using Tile = void (*)(const FloatByInt8&, const float*, float*);
constexpr Tile tiles[kMaxRows] = {tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};

}  // namespace

void float_by_int8_avx512(const FloatByInt8& p) {
  const int64_t count = (p.rows + kMaxRows - 1) / kMaxRows;
  for (int64_t i = 0, row = 0; i < count; ++i) {
    const int64_t rows = p.rows / count + (i < p.rows % count);
    tiles[rows - 1](p, p.x + row * p.x_stride, p.y + row * p.y_stride);
    row += rows;
  }
}

}  // namespace bigmodel
