// Sixteen elements at a time: loads and stores under a mask, and the transposition of 16 by 16. Only for *_avx512.cpp
// files; all in an anonymous namespace, so nothing compiled here can be linked into another file.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "../common/view.h"

namespace bigmodel {
namespace {

inline __mmask16 first_lanes(int64_t count) {
  return count >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1u << count) - 1u);
}

// x[i : i + 16] as float32, 0 where the mask is off.
template <DType dtype>
inline __m512 load16(const void* x, int64_t i, __mmask16 mask) {
  if (dtype == DType::f32) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(x) + i);
  const __m256i h = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(x) + i);
  if (dtype == DType::f16) return _mm512_cvtph_ps(h);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

// Round to nearest even; NaN stays NaN, as float_to_bf16 in half.h.
inline __m256i to_bf16(__m512 y) {
  const __m512i bits = _mm512_castps_si512(y);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(y, y, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

// Lanes where the mask is on, rounded once to dtype. A plain store is cheaper than a masked one.
inline void store16(void* out, DType dtype, int64_t i, __mmask16 mask, __m512 v) {
  if (dtype == DType::f32) {
    if (mask == 0xffff)
      _mm512_storeu_ps(static_cast<float*>(out) + i, v);
    else
      _mm512_mask_storeu_ps(static_cast<float*>(out) + i, mask, v);
    return;
  }
  const __m256i h =
      dtype == DType::f16 ? _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC) : to_bf16(v);
  if (mask == 0xffff)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(static_cast<uint16_t*>(out) + i), h);
  else
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(out) + i, mask, h);
}

// v[i][j] <-> v[j][i], in registers: hence unrolled, and in the caller.
__attribute__((always_inline)) inline void transpose(__m512* v) {
  __m512 t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + j + 2]);
      v[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      v[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 a = _mm512_shuffle_f32x4(v[j], v[j + 4], 0x88), b = _mm512_shuffle_f32x4(v[j], v[j + 4], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(v[j + 8], v[j + 12], 0x88),
                 d = _mm512_shuffle_f32x4(v[j + 8], v[j + 12], 0xdd);
    t[j] = _mm512_shuffle_f32x4(a, c, 0x88);
    t[j + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
    t[j + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
    t[j + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) v[i] = t[i];
}

}  // namespace
}  // namespace bigmodel
