// vpmaddubsw saturates (two products reach 65,280), so the exact way is 16-bit: vpmaddwd sums two products in int32. A
// vector of 4 outputs x 4 weights, widened, times a broadcast group of 4 activations gives two partial sums an output.
#include <immintrin.h>

#include <cstring>

#include "../common/half.h"
#include "int8_panel.h"

namespace bigmodel {
namespace {

constexpr int kMaxRows = 6;
constexpr int kVectors = 2;  // of 4 outputs: 12 sums, 2 weights and an activation fill the 16 registers

inline __m256i load8(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store8(int32_t* p, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }

// sums [rows, 64], of which 8 columns are written; a16 [rows, 4 * groups].
template <int rows>
void tile(const uint16_t* a16, int64_t a_stride, const int8_t* b, int64_t groups, int32_t* sums) {
  __m256i acc[rows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) acc[r][c] = _mm256_setzero_si256();
  }
  for (int64_t g = 0; g < groups; ++g, a16 += 4, b += 256) {
    __m256i weights[kVectors];
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c)
      weights[c] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b + c * 16)));
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      int64_t group;
      std::memcpy(&group, a16 + r * a_stride, 8);
      const __m256i activations = _mm256_set1_epi64x(group);
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) {
        acc[r][c] = _mm256_add_epi32(acc[r][c], _mm256_madd_epi16(activations, weights[c]));
        __asm__ volatile("" : "+x"(acc[r][c]));  // keeps GCC from doing every product first and spilling
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    // Pairs are summed within 128-bit halves, [0 1 4 5 | 2 3 6 7], then put in order.
    const __m256i pairs = _mm256_hadd_epi32(acc[r][0], acc[r][1]);
    store8(sums + r * kPanelColumns, _mm256_permute4x64_epi64(pairs, 0xd8));
  }
}

using Tile = void (*)(const uint16_t*, int64_t, const int8_t*, int64_t, int32_t*);
constexpr Tile tiles[kMaxRows] = {tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};

void widen(const uint8_t* a, int64_t count, uint16_t* a16) {
  for (int64_t i = 0; i < count; ++i) a16[i] = a[i];
}

// Subtracts the compensation, adds earlier blocks of K; in place.
void correct(const Int8Panel& p, int64_t row, int32_t* sums) {
  for (int64_t n = 0; n < kPanelColumns; n += 8) {
    __m256i acc = load8(sums + n);
    if (p.compensation) acc = _mm256_sub_epi32(acc, load8(p.compensation + n));
    if (!p.first) acc = _mm256_add_epi32(acc, load8(p.partial + row * kPanelColumns + n));
    store8(sums + n, acc);
  }
}

void scale(const Int8Panel& p, int64_t row, const int32_t* sums, float* y) {
  const __m256 x_scale = _mm256_set1_ps(p.x_scale[row]);
  for (int64_t n = 0; n < kPanelColumns; n += 8) {
    __m256 v = _mm256_mul_ps(_mm256_cvtepi32_ps(load8(sums + n)), x_scale);
    v = _mm256_mul_ps(v, _mm256_loadu_ps(p.weight_scale + n));
    if (p.bias) v = _mm256_add_ps(v, _mm256_loadu_ps(p.bias + n));
    _mm256_storeu_ps(y + n, v);
  }
}

void narrow(DType dtype, const float* y, uint16_t* half) {
  for (int64_t n = 0; n < kPanelColumns; n += 8) {
    if (dtype == DType::f16) {
      const __m128i h = _mm256_cvtps_ph(_mm256_loadu_ps(y + n), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(half + n), h);
    } else {
      for (int64_t i = n; i < n + 8; ++i) half[i] = float_to_bf16(y[i]);
    }
  }
}

void finish(const Int8Panel& p, int64_t row, int32_t* sums) {
  correct(p, row, sums);
  if (!p.last) {
    std::memcpy(p.partial + row * kPanelColumns, sums, kPanelColumns * 4);
    return;
  }
  const int64_t at = row * p.out_stride;
  if (p.out_dtype == DType::i32) {
    std::memcpy(static_cast<int32_t*>(p.out) + at, sums, static_cast<size_t>(p.columns) * 4);
    return;
  }
  alignas(32) float y[kPanelColumns];
  scale(p, row, sums, y);
  if (p.activate) p.activate(y, 1, kPanelColumns, kPanelColumns, nullptr);
  if (p.out_dtype == DType::f32) {
    std::memcpy(static_cast<float*>(p.out) + at, y, static_cast<size_t>(p.columns) * 4);
    return;
  }
  alignas(32) uint16_t half[kPanelColumns];
  narrow(p.out_dtype, y, half);
  std::memcpy(static_cast<uint16_t*>(p.out) + at, half, static_cast<size_t>(p.columns) * 2);
}

}  // namespace

void int8_panel_avx2(const Int8Panel& p) {
  const int64_t k = 4 * p.groups;
  alignas(64) uint16_t a16[kMaxRows * 4 * kPanelMaxGroups];
  alignas(64) int32_t sums[kMaxRows * kPanelColumns];
  for (int64_t row = 0; row < p.rows; row += kMaxRows) {
    const int64_t rows = p.rows - row < kMaxRows ? p.rows - row : kMaxRows;
    for (int64_t r = 0; r < rows; ++r) widen(p.a + (row + r) * p.a_stride, k, a16 + r * k);
    for (int64_t n = 0; n < kPanelColumns; n += 8) tiles[rows - 1](a16, k, p.b + n * 4, p.groups, sums + n);
    for (int64_t r = 0; r < rows; ++r) finish(p, row + r, sums + r * kPanelColumns);
  }
}

}  // namespace bigmodel
