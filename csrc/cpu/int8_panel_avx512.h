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

template <DType dtype>
inline void store16(void* out, int64_t at, __mmask16 mask, __m512i sums, __m512 x_scale, __m512 weight_scale,
                    __m512 bias) {
  if (dtype == DType::i32) {
    _mm512_mask_storeu_epi32(static_cast<int32_t*>(out) + at, mask, sums);
    return;
  }
  const __m512 scaled = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sums), x_scale), weight_scale);
  const __m512 y = _mm512_add_ps(scaled, bias);
  if (dtype == DType::f32) {
    _mm512_mask_storeu_ps(static_cast<float*>(out) + at, mask, y);
  } else if (dtype == DType::bf16) {
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(out) + at, mask, to_bf16(y));
  } else {
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(out) + at, mask,
                             _mm512_cvtps_ph(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
}

// sums [rows, 64] of the rows from row0.
template <DType dtype>
void finish_as(const Int8Panel& p, int64_t row0, int64_t rows, const int32_t* sums) {
  for (int64_t n = 0; n < p.columns; n += 16) {
    const int64_t left = p.columns - n;
    const __mmask16 mask = left >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1u << left) - 1u);
    const __m512i compensation = p.compensation ? _mm512_loadu_si512(p.compensation + n) : _mm512_setzero_si512();
    const __m512 weight_scale = p.weight_scale ? _mm512_loadu_ps(p.weight_scale + n) : _mm512_setzero_ps();
    const __m512 bias = p.bias ? _mm512_loadu_ps(p.bias + n) : _mm512_set1_ps(-0.0f);  // y + -0 is y for every y
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = row0 + r;
      __m512i acc = _mm512_sub_epi32(_mm512_loadu_si512(sums + r * kPanelColumns + n), compensation);
      if (!p.first) acc = _mm512_add_epi32(acc, _mm512_loadu_si512(p.partial + row * kPanelColumns + n));
      const __m512 x_scale = dtype == DType::i32 ? _mm512_setzero_ps() : _mm512_set1_ps(p.x_scale[row]);
      store16<dtype>(p.out, row * p.out_stride + n, mask, acc, x_scale, weight_scale, bias);
    }
  }
}

void finish_partial(const Int8Panel& p, int64_t row0, int64_t rows, const int32_t* sums) {
  for (int64_t n = 0; n < kPanelColumns; n += 16) {
    const __m512i compensation = p.compensation ? _mm512_loadu_si512(p.compensation + n) : _mm512_setzero_si512();
    for (int64_t r = 0; r < rows; ++r) {
      int32_t* partial = p.partial + (row0 + r) * kPanelColumns + n;
      __m512i acc = _mm512_sub_epi32(_mm512_loadu_si512(sums + r * kPanelColumns + n), compensation);
      if (!p.first) acc = _mm512_add_epi32(acc, _mm512_loadu_si512(partial));
      _mm512_storeu_si512(partial, acc);
    }
  }
}

using Finish = void (*)(const Int8Panel&, int64_t, int64_t, const int32_t*);

Finish pick_finish(const Int8Panel& p) {
  if (!p.last) return finish_partial;
  switch (p.out_dtype) {
    case DType::i32:
      return finish_as<DType::i32>;
    case DType::f32:
      return finish_as<DType::f32>;
    case DType::bf16:
      return finish_as<DType::bf16>;
    default:
      return finish_as<DType::f16>;
  }
}

}  // namespace
}  // namespace bigmodel
