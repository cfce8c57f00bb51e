#include <immintrin.h>

#include "int8_sparse_linear.h"
#include "segments_avx512.h"

namespace bigmodel {
namespace {

// The arithmetic of segments_avx512.h on words of four bytes.
struct Math {
  using Vector = __m512i;
  static constexpr int kBytes = 4;
  static Vector zero() { return _mm512_setzero_si512(); }
  static Vector load_sum(const char* from) { return _mm512_loadu_si512(from); }
  static void store_sum(char* to, Vector sum) { _mm512_storeu_si512(to, sum); }
  static Vector plus(Vector a, Vector b) { return _mm512_add_epi32(a, b); }
  static Vector take(Vector values, __m512i lane) { return _mm512_permutexvar_epi32(lane, values); }
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

// A row of activations' panel in registers, 128 words each, looked up by permutation instead of gathering.
struct Table {
  __m512i part[8];

  void load(const uint32_t* x) {
    for (int i = 0; i < 8; ++i) part[i] = _mm512_loadu_si512(x + i * 16);
  }

  // x[index & 127]
  __m512i at(__m512i index) const {
    const __mmask16 bit5 = _mm512_test_epi32_mask(index, _mm512_set1_epi32(32));
    const __mmask16 bit6 = _mm512_test_epi32_mask(index, _mm512_set1_epi32(64));
    const __m512i a = _mm512_permutex2var_epi32(part[0], index, part[1]);
    const __m512i b = _mm512_permutex2var_epi32(part[2], index, part[3]);
    const __m512i c = _mm512_permutex2var_epi32(part[4], index, part[5]);
    const __m512i d = _mm512_permutex2var_epi32(part[6], index, part[7]);
    return _mm512_mask_blend_epi32(bit6, _mm512_mask_blend_epi32(bit5, a, b), _mm512_mask_blend_epi32(bit5, c, d));
  }
};

// The matrix is read once, front to back, but the processor's own prefetching stops at each 4 KiB page.
void prefetch(const Segments& w, int64_t i) {
  constexpr int64_t kAhead = 512;
  _mm_prefetch(static_cast<const char*>(w.values) + (i + kAhead) * 4, _MM_HINT_T0);
  _mm_prefetch(reinterpret_cast<const char*>(w.col) + i + kAhead, _MM_HINT_T0);
}

// The rows' 16-lane sums (32 KiB) wait in the first-level cache for the next panel.
template <bool Wide>
void multiply_row(const uint32_t* x, const Segments& w, int64_t n_stride, int64_t order_stride, int64_t panels,
                  int64_t panel, uint32_t* y) {
  alignas(64) uint32_t sums[kBlockRows * 16];
  for (int64_t r = 0; r < w.count; ++r) _mm512_store_si512(sums + r * 16, _mm512_setzero_si512());
  const int32_t* crow = w.crow;
  const int32_t* order = w.order;
  for (int64_t p = 0; p < panels; ++p, x += panel, crow += n_stride, order += order_stride) {
    Table low, high;
    low.load(x);
    if (Wide) high.load(x + 128);
    for (int64_t s = 0; s < w.count; ++s) {
      uint32_t* to = sums + (order[s] & (kBlockRows - 1)) * 16;
      __m512i sum = _mm512_load_si512(to);
      for (int64_t i = crow[s]; i < crow[s + 1]; i += 16) {
        prefetch(w, i);
        const int64_t left = crow[s + 1] - i;
        const __mmask16 mask = static_cast<__mmask16>(left >= 16 ? 0xffff : (1 << left) - 1);
        const __m512i index = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, w.col + i));
        __m512i from = low.at(index);
        if (Wide)
          from = _mm512_mask_blend_epi32(_mm512_test_epi32_mask(index, _mm512_set1_epi32(128)), from, high.at(index));
        sum = _mm512_dpbusd_epi32(sum, from,
                                  _mm512_maskz_loadu_epi32(mask, static_cast<const int8_t*>(w.values) + i * 4));
      }
      _mm512_store_si512(to, sum);
    }
  }
  for (int64_t r = 0; r < w.count; ++r)
    y[r] = static_cast<uint32_t>(_mm512_reduce_add_epi32(_mm512_load_si512(sums + r * 16)));
}

void multiply_row_any(const uint32_t* x, const Segments& w, int64_t n_stride, int64_t order_stride, int64_t panels,
                      int64_t panel, uint32_t* y) {
  if (panel <= 128) return multiply_row<false>(x, w, n_stride, order_stride, panels, panel, y);
  return multiply_row<true>(x, w, n_stride, order_stride, panels, panel, y);
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

const Int8SparseKernels int8_sparse_kernels_avx512vnni = {multiply, multiply_row_any, scale};

}  // namespace bigmodel
