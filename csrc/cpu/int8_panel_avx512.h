// The last step of the two AVX-512 int8_panel kernels, sums -> output. Included by those two files only; everything is
// in an anonymous namespace, so each has its own copy and no other file can be linked to one.
#pragma once

#include <immintrin.h>

#include "int8_panel.h"

namespace bigmodel {
namespace {

// Round to nearest even; NaN stays NaN, as float_to_bf16 in half.h.
inline __m256i to_bf16(__m512 y) {
  const __m512i bits = _mm512_castps_si512(y);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(y, y, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

inline __mmask16 columns_mask(int64_t left) {
  return left >= 16 ? __mmask16{0xffff} : left <= 0 ? __mmask16{0} : static_cast<__mmask16>((1u << left) - 1u);
}

// `whole` says that the mask is all ones: a plain store is cheaper than a masked one.
template <DType dtype>
inline void store16(void* out, int64_t at, bool whole, __mmask16 mask, __m512 y) {
  if (dtype == DType::f32) {
    float* to = static_cast<float*>(out) + at;
    whole ? _mm512_storeu_ps(to, y) : _mm512_mask_storeu_ps(to, mask, y);
    return;
  }
  const __m256i half =
      dtype == DType::bf16 ? to_bf16(y) : _mm512_cvtps_ph(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  uint16_t* to = static_cast<uint16_t*>(out) + at;
  whole ? _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), half) : _mm256_mask_storeu_epi16(to, mask, half);
}

constexpr int kPanelVectors = 4;

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
  for (int64_t r = 0; r < rows; ++r, sums += kPanelColumns) {
    const __m512 x_scale = _mm512_set1_ps(p.x_scale[row0 + r]);
    const int64_t at = (row0 + r) * p.out_stride;
#pragma GCC unroll 4
    for (int c = 0; c < kPanelVectors; ++c) {
      const __m512 acc = _mm512_cvtepi32_ps(correct(p, row0 + r, c * 16, sums, compensation[c]));
      const __m512 y = _mm512_add_ps(_mm512_mul_ps(_mm512_mul_ps(acc, x_scale), weight_scale[c]), bias[c]);
      store16<dtype>(p.out, at + c * 16, whole, mask[c], y);
    }
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
}  // namespace bigmodel
