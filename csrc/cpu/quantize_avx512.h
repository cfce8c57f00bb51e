// Finding the largest magnitude and rounding to bytes, of rows (quantize_rows_avx512.cpp) and of images
// (conv_image_avx512.cpp). Included by those two files only; all in an anonymous namespace.
//
// The search works on bit patterns without their sign, whose order as integers is that of the numbers, with infinity
// and then NaN above all of them: one maximum tells everything.
#pragma once

#include "lanes_avx512.h"

namespace bigmodel {
namespace {

template <DType dtype>
inline __m512i magnitude(const void* x, int64_t i, __mmask16 mask) {
  return _mm512_and_si512(_mm512_castps_si512(load16<dtype>(x, i, mask)), _mm512_set1_epi32(0x7fffffff));
}

struct Largest {
  __m512i best[4];
  uint32_t bits() const {
    return _mm512_reduce_max_epu32(
        _mm512_max_epu32(_mm512_max_epu32(best[0], best[1]), _mm512_max_epu32(best[2], best[3])));
  }
};

template <DType dtype>
inline void search64(const void* x, int64_t i, Largest& largest) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j)
    largest.best[j] = _mm512_max_epu32(largest.best[j], magnitude<dtype>(x, i + j * 16, 0xffff));
}

template <DType dtype, bool saturate = false>
inline __m512i rounded(const void* x, int64_t i, __mmask16 mask, __m512 inverse) {
  __m512 scaled = _mm512_mul_ps(load16<dtype>(x, i, mask), inverse);
  if (saturate) scaled = _mm512_min_ps(_mm512_max_ps(scaled, _mm512_set1_ps(-127.0f)), _mm512_set1_ps(127.0f));
  return _mm512_cvtps_epi32(scaled);  // half to even
}

template <DType dtype, bool saturate = false>
inline __m512i rounded64(const void* x, int64_t i, __m512 inverse) {
  // Packing to 16 and then 8 bits works within 128-bit quarters; this puts the 4-byte pieces in order again.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  __m512i v[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) v[j] = rounded<dtype, saturate>(x, i + j * 16, 0xffff, inverse);
  const __m512i packed = _mm512_packs_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]));
  return _mm512_permutexvar_epi32(order, packed);
}

// Rounds the row that begins at element `row` into q if `round`, and returns the largest magnitude of the row that
// begins at `next` if `search`.
template <DType dtype, bool round, bool search, bool saturate = false>
uint32_t pass(const void* x, int64_t row, int64_t next, int64_t k, __m512 inverse, int zero_point, uint8_t* q) {
  const __m512i zero = _mm512_set1_epi8(static_cast<char>(zero_point)), none = _mm512_setzero_si512();
  Largest largest = {{none, none, none, none}};
  int64_t i = 0;
  for (; i + 64 <= k; i += 64) {
    if (search) search64<dtype>(x, next + i, largest);
    if (round) _mm512_storeu_si512(q + i, _mm512_add_epi8(rounded64<dtype, saturate>(x, row + i, inverse), zero));
  }
  for (; i < k; i += 16) {
    const __mmask16 mask = first_lanes(k - i);
    if (search) largest.best[0] = _mm512_max_epu32(largest.best[0], magnitude<dtype>(x, next + i, mask));
    if (!round) continue;
    const __m128i bytes = _mm512_cvtepi32_epi8(rounded<dtype, saturate>(x, row + i, mask, inverse));
    _mm_mask_storeu_epi8(q + i, mask, _mm_add_epi8(bytes, _mm512_castsi512_si128(zero)));
  }
  return search ? largest.bits() : 0;
}

}  // namespace
}  // namespace bigmodel
