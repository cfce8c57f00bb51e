// Without vpdpbusd the exact way is 16-bit: vpmaddwd sums two products in int32, while vpmaddubsw would saturate. A
// vector of 8 outputs x 4 weights, widened, times a broadcast group of 4 activations gives two partial sums an output.
#include "int8_panel_avx512.h"

#include <immintrin.h>

#include <cstring>

#include "int8_panel.h"

namespace bigmodel {
namespace {

constexpr int kMaxRows = 6;
constexpr int kVectors = 4;       // of 8 outputs: half a panel at a time
constexpr int kPanelVectors = 4;  // of 16 outputs

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
      for (int c = 0; c < kVectors; ++c) {
        acc[r][c] = _mm512_add_epi32(acc[r][c], _mm512_madd_epi16(activations, weights[c]));
        __asm__ volatile("" : "+v"(acc[r][c]));  // keeps GCC from doing every product first and spilling
      }
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

// Subtracts the compensation from sums [rows, 64] and adds the sums of earlier blocks of K, of the rows from row0.
inline __m512i correct(const Int8Panel& p, int64_t row, int64_t n, const int32_t* sums, __m512i compensation) {
  const __m512i acc = _mm512_sub_epi32(_mm512_loadu_si512(sums + n), compensation);
  return p.first ? acc : _mm512_add_epi32(acc, _mm512_loadu_si512(p.partial + row * kPanelColumns + n));
}

// sums [rows, 64], of the rows from row0, to a float output. What belongs to columns stays in registers over the rows.
template <DType dtype>
void finish_float(const Int8Panel& p, int64_t row0, int64_t rows, const int32_t* sums) {
  __m512i compensation[kPanelVectors];
  __m512 weight_scale[kPanelVectors], bias[kPanelVectors];
  __mmask16 mask[kPanelVectors];
#pragma GCC unroll 4
  for (int c = 0; c < kPanelVectors; ++c) {
    const int n = c * 16;
    compensation[c] = p.compensation ? _mm512_loadu_si512(p.compensation + n) : _mm512_setzero_si512();
    weight_scale[c] = _mm512_loadu_ps(p.weight_scale + n);
    bias[c] = p.bias ? _mm512_loadu_ps(p.bias + n) : _mm512_set1_ps(-0.0f);  // y + -0 is y for every y
    mask[c] = columns_mask(p.columns - n);
  }
  const bool whole = p.columns == kPanelColumns;
  alignas(64) float row[kPanelColumns];
  for (int64_t r = 0; r < rows; ++r, sums += kPanelColumns) {
    const __m512 x_scale = _mm512_set1_ps(p.x_scale[row0 + r]);
    const int64_t at = (row0 + r) * p.out_stride;
#pragma GCC unroll 4
    for (int c = 0; c < kPanelVectors; ++c) {
      const __m512 acc = _mm512_cvtepi32_ps(correct(p, row0 + r, c * 16, sums, compensation[c]));
      const __m512 y = _mm512_add_ps(_mm512_mul_ps(_mm512_mul_ps(acc, x_scale), weight_scale[c]), bias[c]);
      if (p.activate)
        _mm512_store_ps(row + c * 16, y);
      else
        store16<dtype>(p.out, at + c * 16, whole, mask[c], y);
    }
    if (!p.activate) continue;
    p.activate(row, 1, kPanelColumns, kPanelColumns, nullptr);
    for (int c = 0; c < kPanelVectors; ++c)
      store16<dtype>(p.out, at + c * 16, whole, mask[c], _mm512_load_ps(row + c * 16));
  }
}

// To an int32 output, or to `partial` if more of K follows.
void finish_int(const Int8Panel& p, int64_t row0, int64_t rows, const int32_t* sums) {
  for (int64_t r = 0; r < rows; ++r, sums += kPanelColumns) {
    const int64_t row = row0 + r;
    int32_t* to = p.last ? static_cast<int32_t*>(p.out) + row * p.out_stride : p.partial + row * kPanelColumns;
    const int64_t columns = p.last ? p.columns : kPanelColumns;
    for (int64_t n = 0; n < columns; n += 16) {
      const __m512i compensation = p.compensation ? _mm512_loadu_si512(p.compensation + n) : _mm512_setzero_si512();
      _mm512_mask_storeu_epi32(to + n, columns_mask(columns - n), correct(p, row, n, sums, compensation));
    }
  }
}

using Finish = void (*)(const Int8Panel&, int64_t, int64_t, const int32_t*);

Finish pick_finish(const Int8Panel& p) {
  if (!p.last || p.out_dtype == DType::i32) return finish_int;
  switch (p.out_dtype) {
    case DType::f32:
      return finish_float<DType::f32>;
    case DType::bf16:
      return finish_float<DType::bf16>;
    default:
      return finish_float<DType::f16>;
  }
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
