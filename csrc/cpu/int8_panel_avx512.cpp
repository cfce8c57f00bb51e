// Without vpdpbusd the exact way is 16-bit: vpmaddwd sums two products in int32, while vpmaddubsw would saturate. A
// vector of 8 outputs x 4 weights, widened, times a broadcast group of 4 activations gives two partial sums an output.
#include "int8_panel_avx512.h"

#include <immintrin.h>

#include <cstring>

#include "int8_panel.h"

namespace bigmodel {
namespace {

constexpr int kMaxRows = 6;
constexpr int kVectors = 4;  // of 8 outputs: half a panel at a time

// Two partial sums an output -> one: outputs 0 to 7 from `low`, 8 to 15 from `high`.
inline __m512i join(__m512i low, __m512i high) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  return _mm512_add_epi32(_mm512_permutex2var_epi32(low, even, high), _mm512_permutex2var_epi32(low, odd, high));
}

// sums [rows, 64], of which 32 columns are written; a16 [rows, 4 * groups].
template <int rows>
void tile(const uint16_t* a16, int64_t a_stride, const int8_t* b, int64_t groups, int32_t* sums) {
  __m512i acc[rows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) acc[r][c] = _mm512_setzero_si512();
  }
  for (int64_t g = 0; g < groups; ++g, a16 += 4, b += 256) {
    __m512i weights[kVectors];
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c)
      weights[c] = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + c * 32)));
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      int64_t group;
      std::memcpy(&group, a16 + r * a_stride, 8);
      const __m512i activations = _mm512_set1_epi64(group);
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c)
        acc[r][c] = _mm512_add_epi32(acc[r][c], _mm512_madd_epi16(activations, weights[c]));
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    _mm512_storeu_si512(sums + r * kPanelColumns, join(acc[r][0], acc[r][1]));
    _mm512_storeu_si512(sums + r * kPanelColumns + 16, join(acc[r][2], acc[r][3]));
  }
}

using Tile = void (*)(const uint16_t*, int64_t, const int8_t*, int64_t, int32_t*);
constexpr Tile tiles[kMaxRows] = {tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};

void widen(const uint8_t* a, int64_t count, uint16_t* a16) {
  for (int64_t i = 0; i < count; ++i) a16[i] = a[i];
}

}  // namespace

void int8_panel_avx512(const Int8Panel& p) {
  const Finish finish = pick_finish(p);
  const int64_t k = 4 * p.groups;
  alignas(64) uint16_t a16[kMaxRows * 4 * kPanelMaxGroups];
  alignas(64) int32_t sums[kMaxRows * kPanelColumns];
  for (int64_t row = 0; row < p.rows; row += kMaxRows) {
    const int64_t rows = p.rows - row < kMaxRows ? p.rows - row : kMaxRows;
    for (int64_t r = 0; r < rows; ++r) widen(p.a + (row + r) * p.a_stride, k, a16 + r * k);
    for (int half = 0; half < 2; ++half) tiles[rows - 1](a16, k, p.b + half * 128, p.groups, sums + half * 32);
    finish(p, row, rows, sums);
  }
}

}  // namespace bigmodel
