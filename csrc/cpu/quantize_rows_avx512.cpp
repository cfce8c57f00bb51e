// A row's largest magnitude must be known before its first element can be rounded: while one row is rounded the next
// one is searched, which hides that it comes from L2.
#include <cstring>

#include "../common/half.h"
#include "quantize_avx512.h"
#include "quantize_rows.h"

namespace bigmodel {
namespace {

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

// The search is for NaN and infinity only, in the registers that are rounded.
template <DType dtype>
void quantize_fixed(const void* x, int64_t rows, int64_t k, int64_t x_stride, uint8_t* q, int64_t q_stride,
                    int zero_point, FixedScale fixed, float* scale) {
  const __m512 inverse = _mm512_set1_ps(fixed.inverse);
  for (int64_t m = 0, row = 0; m < rows; ++m, row += x_stride, q += q_stride) {
    const uint32_t bits = pass<dtype, true, true, true>(x, row, row, k, inverse, zero_point, q);
    scale[m] = bits < 0x7f800000u ? fixed.scale : bits_to_float(0x7fc00000u);
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

void quantize_fixed_avx512(const void* x, DType dtype, int64_t rows, int64_t k, int64_t x_stride, uint8_t* q,
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
