// As quantize_rows_avx512.cpp, 8 elements at a time; the elements of a row past the last 8 go one by one.
#include <cstring>

#include "../common/half.h"
#include "quantize_avx2.h"
#include "quantize_rows.h"

namespace bigmodel {
namespace {

// If `saturate`, returns the largest magnitude's bits; else nothing may exceed 127.
template <DType dtype, bool saturate>
uint32_t quantize_row(const void* x, int64_t row, int64_t k, float inverse, int zero_point, uint8_t* q) {
  const __m256 factor = _mm256_set1_ps(inverse), least = _mm256_set1_ps(-127.0f), most = _mm256_set1_ps(127.0f);
  __m256i largest = _mm256_setzero_si256();
  // Packing to 16 and then 8 bits works within 128-bit halves; q is in range, so its low bytes are what is wanted.
  const __m256i low_bytes = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                             0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i zero = _mm256_set1_epi32(zero_point);
  int64_t i = 0;
  for (; i + 8 <= k; i += 8) {
    const __m256 value = load8<dtype>(x, row + i);
    __m256 scaled = _mm256_mul_ps(value, factor);
    if (saturate) {
      scaled = _mm256_min_ps(_mm256_max_ps(scaled, least), most);
      largest = larger(largest, value);
    }
    const __m256i rounded = _mm256_cvtps_epi32(scaled);  // half to even
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_add_epi32(rounded, zero), low_bytes);
    const __m128i joined = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(q + i), joined);
  }
  uint32_t bits = saturate ? largest_lane(largest) : 0;
  for (; i < k; ++i) {
    const float value = load1<dtype>(x, row + i);
    __m128 scaled = _mm_set_ss(value * inverse);
    if (saturate) {
      scaled = _mm_min_ss(_mm_max_ss(scaled, _mm256_castps256_ps128(least)), _mm256_castps256_ps128(most));
      const uint32_t own = float_to_bits(value) & 0x7fffffffu;
      bits = own > bits ? own : bits;
    }
    q[i] = static_cast<uint8_t>(_mm_cvtss_si32(scaled) + zero_point);
  }
  return bits;
}

template <DType dtype>
void quantize_fixed(const void* x, int64_t rows, int64_t k, int64_t x_stride, uint8_t* q, int64_t q_stride,
                    int zero_point, FixedScale fixed, float* scale) {
  for (int64_t m = 0, row = 0; m < rows; ++m, row += x_stride, q += q_stride) {
    const uint32_t bits = quantize_row<dtype, true>(x, row, k, fixed.inverse, zero_point, q);
    scale[m] = bits < 0x7f800000u ? fixed.scale : bits_to_float(0x7fc00000u);
    if (q_stride > k) std::memset(q + k, zero_point, static_cast<size_t>(q_stride - k));
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
    quantize_row<dtype, false>(x, row, k, 127.0f / absmax, zero_point, q);
    if (q_stride > k) std::memset(q + k, zero_point, static_cast<size_t>(q_stride - k));
  }
}

}  // namespace

void quantize_rows_avx2(const void* x, DType dtype, int64_t rows, int64_t k, int64_t x_stride, uint8_t* q,
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

void quantize_fixed_avx2(const void* x, DType dtype, int64_t rows, int64_t k, int64_t x_stride, uint8_t* q,
                         int64_t q_stride, int zero_point, FixedScale fixed, float* scale) {
  switch (dtype) {
    case DType::f32:
      return quantize_fixed<DType::f32>(x, rows, k, x_stride, q, q_stride, zero_point, fixed, scale);
    case DType::bf16:
      return quantize_fixed<DType::bf16>(x, rows, k, x_stride, q, q_stride, zero_point, fixed, scale);
    default:
      return quantize_fixed<DType::f16>(x, rows, k, x_stride, q, q_stride, zero_point, fixed, scale);
  }
}

}  // namespace bigmodel
