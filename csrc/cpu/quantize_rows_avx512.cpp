// Two passes over a row, which stays in L1. The largest magnitude is found on the bit patterns without their sign,
// whose order as integers is that of the numbers, with infinity and then NaN above all of them: one maximum tells
// everything.
#include <immintrin.h>

#include <cstring>

#include "../common/half.h"
#include "quantize_rows.h"

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

template <DType dtype>
inline __m512i magnitude(const void* x, int64_t i, __mmask16 mask) {
  return _mm512_and_si512(_mm512_castps_si512(load16<dtype>(x, i, mask)), _mm512_set1_epi32(0x7fffffff));
}

template <DType dtype>
uint32_t largest_magnitude(const void* x, int64_t row, int64_t k) {
  __m512i best[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) best[j] = _mm512_setzero_si512();
  int64_t i = 0;
  for (; i + 64 <= k; i += 64) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) best[j] = _mm512_max_epu32(best[j], magnitude<dtype>(x, row + i + j * 16, 0xffff));
  }
  for (; i < k; i += 16) best[0] = _mm512_max_epu32(best[0], magnitude<dtype>(x, row + i, first_lanes(k - i)));
  best[0] = _mm512_max_epu32(_mm512_max_epu32(best[0], best[1]), _mm512_max_epu32(best[2], best[3]));
  return _mm512_reduce_max_epu32(best[0]);
}

template <DType dtype>
inline __m512i rounded(const void* x, int64_t i, __mmask16 mask, __m512 inverse) {
  return _mm512_cvtps_epi32(_mm512_mul_ps(load16<dtype>(x, i, mask), inverse));  // half to even
}

template <DType dtype>
void quantize_row(const void* x, int64_t row, int64_t k, __m512 inverse, int zero_point, uint8_t* q) {
  const __m512i zero = _mm512_set1_epi8(static_cast<char>(zero_point));
  // Packing to 16 and then 8 bits works within 128-bit quarters; this puts the 4-byte pieces in order again.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  int64_t i = 0;
  for (; i + 64 <= k; i += 64) {
    __m512i v[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) v[j] = rounded<dtype>(x, row + i + j * 16, 0xffff, inverse);
    const __m512i packed = _mm512_packs_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]));
    _mm512_storeu_si512(q + i, _mm512_add_epi8(_mm512_permutexvar_epi32(order, packed), zero));
  }
  for (; i < k; i += 16) {
    const __mmask16 mask = first_lanes(k - i);
    const __m128i bytes = _mm512_cvtepi32_epi8(rounded<dtype>(x, row + i, mask, inverse));
    _mm_mask_storeu_epi8(q + i, mask, _mm_add_epi8(bytes, _mm512_castsi512_si128(zero)));
  }
}

template <DType dtype>
void quantize(const void* x, int64_t rows, int64_t k, int64_t x_stride, uint8_t* q, int64_t q_stride, int zero_point,
              float* scale) {
  for (int64_t m = 0; m < rows; ++m, q += q_stride) {
    const int64_t row = m * x_stride;
    const uint32_t bits = largest_magnitude<dtype>(x, row, k);
    const float absmax = bits_to_float(bits);
    const bool finite = bits < 0x7f800000u;
    if (!finite || absmax < kSmallestQuantizable) {
      scale[m] = finite ? 0.0f : bits_to_float(0x7fc00000u);
      std::memset(q, zero_point, static_cast<size_t>(q_stride));
      continue;
    }
    scale[m] = absmax / 127.0f;
    quantize_row<dtype>(x, row, k, _mm512_set1_ps(127.0f / absmax), zero_point, q);
    if (q_stride > k) std::memset(q + k, zero_point, static_cast<size_t>(q_stride - k));
  }
}

}  // namespace

void quantize_rows_avx512(const void* x, DType dtype, int64_t rows, int64_t k, int64_t x_stride, uint8_t* q,
                          int64_t q_stride, int zero_point, float* scale) {
  switch (dtype) {
    case DType::f32:
      return quantize<DType::f32>(x, rows, k, x_stride, q, q_stride, zero_point, scale);
    case DType::bf16:
      return quantize<DType::bf16>(x, rows, k, x_stride, q, q_stride, zero_point, scale);
    default:
      return quantize<DType::f16>(x, rows, k, x_stride, q, q_stride, zero_point, scale);
  }
}

}  // namespace bigmodel
