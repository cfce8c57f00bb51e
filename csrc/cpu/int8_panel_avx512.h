// How the two AVX-512 int8_panel kernels store their results. Included by those two files only; everything is in an
// anonymous namespace, so each has its own copy and no other file can be linked to one.
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

// A tile's results, float32 or int32 [rows, 64], to an output of another dtype or of fewer columns.
template <DType dtype>
void store_rows(const Int8Panel& p, int64_t row, int64_t rows, const float* y) {
  for (int64_t r = 0; r < rows; ++r, y += kPanelColumns) {
    for (int64_t n = 0; n < p.columns; n += 16) {
      const int64_t left = p.columns - n;
      store16<dtype>(p.out, (row + r) * p.out_stride + n, left >= 16, columns_mask(left), _mm512_load_ps(y + n));
    }
  }
}

inline void store_rows(const Int8Panel& p, int64_t row, int64_t rows, const float* y) {
  switch (p.out_dtype) {
    case DType::bf16:
      return store_rows<DType::bf16>(p, row, rows, y);
    case DType::f16:
      return store_rows<DType::f16>(p, row, rows, y);
    default:  // float32, and int32 as the bits that it is
      return store_rows<DType::f32>(p, row, rows, y);
  }
}

}  // namespace
}  // namespace bigmodel
