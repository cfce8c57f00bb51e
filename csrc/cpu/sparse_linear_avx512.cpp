#include <immintrin.h>

#include "segment_row_avx512.h"
#include "segments_avx512.h"
#include "sparse_linear.h"

namespace bigmodel {
namespace {

// How values of each dtype are read, and the arithmetic of segments_avx512.h on them.
struct F32 {
  static constexpr int kBytes = 4;
  static __m512 broadcast(const void* values, int64_t i) {
    return _mm512_set1_ps(static_cast<const float*>(values)[i]);
  }
  static __m512 load(const void* values, int64_t i, __mmask16 mask) {
    return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(values) + i);
  }
  static __m512 load8(const void* values, int64_t i) {
    return _mm512_castps256_ps512(_mm256_loadu_ps(static_cast<const float*>(values) + i));
  }
};

struct Bf16 {
  static constexpr int kBytes = 2;
  static __m512 broadcast(const void* values, int64_t i) {
    const uint32_t bits = static_cast<const uint16_t*>(values)[i];
    return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(bits << 16)));
  }
  static __m512 load(const void* values, int64_t i, __mmask16 mask) {
    const __m256i h = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(values) + i);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
  }
  static __m512 load8(const void* values, int64_t i) {
    const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(values) + i));
    return _mm512_castps256_ps512(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)));
  }
};

struct F16 {
  static constexpr int kBytes = 2;
  static __m512 broadcast(const void* values, int64_t i) {
    return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<const int16_t*>(values)[i]));
  }
  static __m512 load(const void* values, int64_t i, __mmask16 mask) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(values) + i));
  }
  static __m512 load8(const void* values, int64_t i) {
    const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(values) + i));
    return _mm512_castps256_ps512(_mm256_cvtph_ps(h));
  }
};

template <typename V>
struct Math : V {
  using Vector = __m512;
  static Vector zero() { return _mm512_setzero_ps(); }
  static Vector load_sum(const void* from) { return _mm512_loadu_ps(from); }
  static void store_sum(void* to, Vector sum) { _mm512_storeu_ps(to, sum); }
  static Vector plus(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static Vector take(Vector values, __m512i lane) { return _mm512_permutexvar_ps(lane, values); }
  static Vector add_products(Vector sum, __mmask16 mask, Vector v, __m512i x) {
    return _mm512_mask3_fmadd_ps(v, _mm512_castsi512_ps(x), sum, mask);
  }
  static uint32_t total(Vector sum) {
    const __m128 lane = _mm_set_ss(_mm512_reduce_add_ps(sum));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_castps_si128(lane)));
  }
  static Vector add(Vector sum, Vector v, const char* x) { return _mm512_fmadd_ps(v, _mm512_loadu_ps(x), sum); }
};

int64_t row_of(const Segments& w, int64_t s) { return w.order[s] & (kBlockRows - 1); }

template <typename V, int W>
void grad_input(const float* grad, const Segments& segments, float* dx) {
  for (int64_t r = 0; r < segments.count; ++r) {
    const float* row = grad + row_of(segments, r) * (W * 16);
    __m512 g[W];
    for (int w = 0; w < W; ++w) g[w] = _mm512_loadu_ps(row + w * 16);
    for (int64_t i = segments.crow[r]; i < segments.crow[r + 1]; ++i) {
      const __m512 v = V::broadcast(segments.values, i);
      float* to = dx + segments.col[i] * (W * 16);
      for (int w = 0; w < W; ++w) _mm512_storeu_ps(to + w * 16, _mm512_fmadd_ps(v, g[w], _mm512_loadu_ps(to + w * 16)));
    }
  }
}

// The sums of four vectors' lanes.
__m128 lane_sums(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 abcd = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

template <int W>
void grad_values(const float* grad, const float* x, const Segments& segments, bool add, float* dvalues) {
  const uint8_t* col = segments.col;
  for (int64_t r = 0; r < segments.count; ++r) {
    const float* row = grad + row_of(segments, r) * (W * 16);
    const int64_t end = segments.crow[r + 1];
    __m512 g[W];
    for (int w = 0; w < W; ++w) g[w] = _mm512_loadu_ps(row + w * 16);
    for (int64_t i = segments.crow[r]; i < end; i += 4) {
      __m512 sum[4];
      for (int64_t j = 0; j < 4; ++j) {
        const int64_t entry = i + j < end ? i + j : end - 1;
        const float* from = x + col[entry] * (W * 16);
        sum[j] = _mm512_mul_ps(g[0], _mm512_loadu_ps(from));
        for (int w = 1; w < W; ++w) sum[j] = _mm512_fmadd_ps(g[w], _mm512_loadu_ps(from + w * 16), sum[j]);
      }
      const __mmask8 mask = static_cast<__mmask8>(end - i >= 4 ? 15 : (1 << (end - i)) - 1);
      __m128 total = lane_sums(sum[0], sum[1], sum[2], sum[3]);
      if (add) total = _mm_add_ps(total, _mm_maskz_loadu_ps(mask, dvalues + i));
      _mm_mask_storeu_ps(dvalues + i, mask, total);
    }
  }
}

template <typename V>
void grad_input_any(const float* grad, int64_t width, const Segments& w, float* dx) {
  switch (width) {
    case 16:
      return grad_input<V, 1>(grad, w, dx);
    case 32:
      return grad_input<V, 2>(grad, w, dx);
    case 48:
      return grad_input<V, 3>(grad, w, dx);
    default:
      return grad_input<V, 4>(grad, w, dx);
  }
}

void multiply_entry(const float* x, int64_t width, const Segments& w, float* y) {
  if (w.dtype == DType::f32) return add_segments<Math<F32>>(x, width, w, y);
  if (w.dtype == DType::bf16) return add_segments<Math<Bf16>>(x, width, w, y);
  return add_segments<Math<F16>>(x, width, w, y);
}

void multiply_row_entry(const float* x, const Segments& w, int64_t n_stride, int64_t order_stride, int64_t panels,
                        int64_t panel, float* y) {
  if (w.dtype == DType::f32) return multiply_row<Math<F32>>(x, w, n_stride, order_stride, panels, panel, y);
  if (w.dtype == DType::bf16) return multiply_row<Math<Bf16>>(x, w, n_stride, order_stride, panels, panel, y);
  return multiply_row<Math<F16>>(x, w, n_stride, order_stride, panels, panel, y);
}

void grad_input_entry(const float* grad, int64_t width, const Segments& w, float* dx) {
  if (w.dtype == DType::f32) return grad_input_any<F32>(grad, width, w, dx);
  if (w.dtype == DType::bf16) return grad_input_any<Bf16>(grad, width, w, dx);
  return grad_input_any<F16>(grad, width, w, dx);
}

void grad_values_entry(const float* grad, const float* x, int64_t width, const Segments& w, bool add, float* dvalues) {
  switch (width) {
    case 16:
      return grad_values<1>(grad, x, w, add, dvalues);
    case 32:
      return grad_values<2>(grad, x, w, add, dvalues);
    case 48:
      return grad_values<3>(grad, x, w, add, dvalues);
    default:
      return grad_values<4>(grad, x, w, add, dvalues);
  }
}

}  // namespace

const SparseKernels sparse_kernels_avx512 = {multiply_entry, multiply_row_entry, grad_input_entry, grad_values_entry};

}  // namespace bigmodel
