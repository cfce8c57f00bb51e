// A row's largest magnitude must be known before its first element can be rounded: while one row is rounded the next
// one is searched, which hides that it comes from L2. The search works on bit patterns without their sign, whose order
// as integers is that of the numbers, with infinity and then NaN above all of them: one maximum tells everything.
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

template <DType dtype>
inline __m512i rounded(const void* x, int64_t i, __mmask16 mask, __m512 inverse) {
  return _mm512_cvtps_epi32(_mm512_mul_ps(load16<dtype>(x, i, mask), inverse));  // half to even
}

template <DType dtype>
inline __m512i rounded64(const void* x, int64_t i, __m512 inverse) {
  // Packing to 16 and then 8 bits works within 128-bit quarters; this puts the 4-byte pieces in order again.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  __m512i v[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) v[j] = rounded<dtype>(x, i + j * 16, 0xffff, inverse);
  const __m512i packed = _mm512_packs_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]));
  return _mm512_permutexvar_epi32(order, packed);
}

// Rounds the row that begins at element `row` into q if `round`, and returns the largest magnitude of the row that
// begins at `next` if `search`.
template <DType dtype, bool round, bool search>
uint32_t pass(const void* x, int64_t row, int64_t next, int64_t k, __m512 inverse, int zero_point, uint8_t* q) {
  const __m512i zero = _mm512_set1_epi8(static_cast<char>(zero_point)), none = _mm512_setzero_si512();
  Largest largest = {{none, none, none, none}};
  int64_t i = 0;
  for (; i + 64 <= k; i += 64) {
    if (search) search64<dtype>(x, next + i, largest);
    if (round) _mm512_storeu_si512(q + i, _mm512_add_epi8(rounded64<dtype>(x, row + i, inverse), zero));
  }
  for (; i < k; i += 16) {
    const __mmask16 mask = first_lanes(k - i);
    if (search) largest.best[0] = _mm512_max_epu32(largest.best[0], magnitude<dtype>(x, next + i, mask));
    if (!round) continue;
    const __m128i bytes = _mm512_cvtepi32_epi8(rounded<dtype>(x, row + i, mask, inverse));
    _mm_mask_storeu_epi8(q + i, mask, _mm_add_epi8(bytes, _mm512_castsi512_si128(zero)));
  }
  return search ? largest.bits() : 0;
}

template <DType dtype>
void quantize(const void* x, int64_t rows, int64_t k, int64_t x_stride, uint8_t* q, int64_t q_stride, int zero_point,
              float* scale) {
  const __m512 unused = _mm512_setzero_ps();
  uint32_t bits = rows > 0 ? pass<dtype, false, true>(x, 0, 0, k, unused, zero_point, q) : 0;
  for (int64_t m = 0; m < rows; ++m, q += q_stride) {
    const int64_t row = m * x_stride, next = row + x_stride;
    const float absmax = bits_to_float(bits);
    const bool finite = bits < 0x7f800000u, last = m + 1 == rows;
    if (!finite || absmax < kSmallestQuantizable) {
      scale[m] = finite ? 0.0f : bits_to_float(0x7fc00000u);
      std::memset(q, zero_point, static_cast<size_t>(q_stride));
      if (!last) bits = pass<dtype, false, true>(x, row, next, k, unused, zero_point, q);
      continue;
    }
    scale[m] = absmax / 127.0f;
    const __m512 inverse = _mm512_set1_ps(127.0f / absmax);
    bits = last ? pass<dtype, true, false>(x, row, row, k, inverse, zero_point, q)
                : pass<dtype, true, true>(x, row, next, k, inverse, zero_point, q);
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
