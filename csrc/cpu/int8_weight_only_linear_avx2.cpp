// As int8_weight_only_linear_avx512.cpp with 8 outputs in a vector: more rows leave room for fewer outputs at a time.
#include <immintrin.h>

#include "int8_weight_only_linear.h"

namespace bigmodel {
namespace {

constexpr int kMaxRows = 6;

template <int j>
inline __m256 weights(__m256i four) {
  const __m256i top = j == 3 ? four : _mm256_slli_epi32(four, 24 - 8 * j);
  return _mm256_cvtepi32_ps(_mm256_srai_epi32(top, 24));
}

template <int rows, int vectors, int j>
inline void step(const __m256i* four, const float* x, int64_t stride, __m256 (&acc)[rows][vectors]) {
  __m256 v[vectors];
#pragma GCC unroll 8
  for (int c = 0; c < vectors; ++c) v[c] = weights<j>(four[c]);
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    const __m256 a = _mm256_broadcast_ss(x + r * stride + j);
#pragma GCC unroll 8
    for (int c = 0; c < vectors; ++c) acc[r][c] = _mm256_fmadd_ps(a, v[c], acc[r][c]);
  }
}

template <int rows, int vectors>
void tile(const FloatByInt8& p, const float* x0, float* y, int column) {
  __m256 acc[rows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < vectors; ++c) acc[r][c] = _mm256_setzero_ps();
  const int8_t* w = p.weight + column * 4;
  const float* x = x0;
  for (int64_t g = 0; g < p.groups; ++g, w += 256, x += 4) {
    __m256i four[vectors];
#pragma GCC unroll 8
    for (int c = 0; c < vectors; ++c) four[c] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + c * 32));
    step<rows, vectors, 0>(four, x, p.x_stride, acc);
    step<rows, vectors, 1>(four, x, p.x_stride, acc);
    step<rows, vectors, 2>(four, x, p.x_stride, acc);
    step<rows, vectors, 3>(four, x, p.x_stride, acc);
  }
#pragma GCC unroll 8
  for (int c = 0; c < vectors; ++c) {
    const int at = column + c * 8;
    const __m256 scale = _mm256_loadu_ps(p.scale + at);
    const __m256 bias = p.bias ? _mm256_loadu_ps(p.bias + at) : _mm256_set1_ps(-0.0f);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
      _mm256_storeu_ps(y + r * p.y_stride + at, _mm256_add_ps(_mm256_mul_ps(acc[r][c], scale), bias));
  }
}

template <int rows, int vectors>
void panel(const FloatByInt8& p, const float* x, float* y) {
  for (int column = 0; column < 64; column += 8 * vectors) tile<rows, vectors>(p, x, y, column);
}

using Panel = void (*)(const FloatByInt8&, const float*, float*);
constexpr Panel panels[kMaxRows] = {panel<1, 4>, panel<2, 4>, panel<3, 2>, panel<4, 2>, panel<5, 2>, panel<6, 2>};

}  // namespace

void float_by_int8_avx2(const FloatByInt8& p) {
  const int64_t count = (p.rows + kMaxRows - 1) / kMaxRows;
  for (int64_t i = 0, row = 0; i < count; ++i) {
    const int64_t rows = p.rows / count + (i < p.rows % count);
    panels[rows - 1](p, p.x + row * p.x_stride, p.y + row * p.y_stride);
    row += rows;
  }
}

}  // namespace bigmodel
