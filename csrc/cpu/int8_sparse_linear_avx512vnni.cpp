#include <immintrin.h>

#include "int8_sparse_linear.h"
#include "segment_row_avx512.h"
#include "segments_avx512.h"

namespace bigmodel {
namespace {

// The arithmetic of segments_avx512.h on words of four bytes.
struct Math {
  using Vector = __m512i;
  static constexpr int kBytes = 4;
  static Vector zero() { return _mm512_setzero_si512(); }
  static Vector load_sum(const void* from) { return _mm512_loadu_si512(from); }
  static void store_sum(void* to, Vector sum) { _mm512_storeu_si512(to, sum); }
  static Vector plus(Vector a, Vector b) { return _mm512_add_epi32(a, b); }
  static Vector take(Vector values, __m512i lane) { return _mm512_permutexvar_epi32(lane, values); }
  static Vector add_products(Vector sum, __mmask16, Vector v, __m512i x) { return _mm512_dpbusd_epi32(sum, x, v); }
  static uint32_t total(Vector sum) {  // modulo 2^32: the intrinsic for it adds signed numbers
    uint32_t lanes[16], total = 0;
    _mm512_storeu_si512(lanes, sum);
    for (const uint32_t lane : lanes) total += lane;
    return total;
  }
  static Vector add(Vector sum, Vector v, const char* x) { return _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(x), v); }
  static Vector load(const void* values, int64_t i, __mmask16 mask) {
    return _mm512_maskz_loadu_epi32(mask, static_cast<const int8_t*>(values) + i * 4);
  }
  static Vector load8(const void* values, int64_t i) {
    const void* from = static_cast<const int8_t*>(values) + i * 4;
    return _mm512_castsi256_si512(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
  }
};

void multiply(const uint32_t* x, int64_t width, const Segments& w, uint32_t* y) { add_segments<Math>(x, width, w, y); }

void multiply_row_entry(const uint32_t* x, const Segments& w, int64_t n_stride, int64_t order_stride, int64_t panels,
                        int64_t panel, uint32_t* y) {
  multiply_row<Math>(x, w, n_stride, order_stride, panels, panel, y);
}

__m512 scaled(__m512i sum, __m512i excess, __m512 scale, __m512 weight_scale) {
  return _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(sum, excess)), scale), weight_scale);
}

__m512i excess_of(__m512i row_sum) { return _mm512_slli_epi32(row_sum, 7); }

void scale_row(uint32_t* y, int64_t rows, const int32_t* row_sum, float scale, const float* weight_scale) {
  for (int64_t r = 0; r < rows; r += 16) {
    const __mmask16 mask = static_cast<__mmask16>(rows - r >= 16 ? 0xffff : (1 << (rows - r)) - 1);
    const __m512i excess = excess_of(_mm512_maskz_loadu_epi32(mask, row_sum + r));
    const __m512 result = scaled(_mm512_maskz_loadu_epi32(mask, y + r), excess, _mm512_set1_ps(scale),
                                 _mm512_maskz_loadu_ps(mask, weight_scale + r));
    _mm512_mask_storeu_ps(y + r, mask, result);
  }
}

void scale(uint32_t* y, int64_t width, int64_t rows, const int32_t* row_sum, const float* scale,
           const float* weight_scale) {
  if (width == 1) return scale_row(y, rows, row_sum, scale[0], weight_scale);
  for (int64_t r = 0; r < rows; ++r, y += width) {
    const __m512i excess = excess_of(_mm512_set1_epi32(row_sum[r]));
    const __m512 weight = _mm512_set1_ps(weight_scale[r]);
    for (int64_t m = 0; m < width; m += 16)
      _mm512_storeu_ps(y + m, scaled(_mm512_loadu_si512(y + m), excess, _mm512_loadu_ps(scale + m), weight));
  }
}

}  // namespace

const Int8SparseKernels int8_sparse_kernels_avx512vnni = {multiply, multiply_row_entry, scale};

}  // namespace bigmodel
