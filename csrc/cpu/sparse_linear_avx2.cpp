#include <immintrin.h>

#include "sparse_linear.h"

namespace bigmodel {
namespace {

struct F32 {
  static __m256 broadcast(const void* values, int64_t i) {
    return _mm256_broadcast_ss(static_cast<const float*>(values) + i);
  }
};

struct Bf16 {
  static __m256 broadcast(const void* values, int64_t i) {
    const uint32_t bits = static_cast<const uint16_t*>(values)[i];
    return _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(bits << 16)));
  }
};

struct F16 {
  static __m256 broadcast(const void* values, int64_t i) {
    return _mm256_cvtph_ps(_mm_set1_epi16(static_cast<const int16_t*>(values)[i]));
  }
};

int64_t row_of(const Segments& w, int64_t s) { return w.order[s] & (kBlockRows - 1); }

// W vectors of 8: with the 8 of a full tile their sums hide each other's latency; narrow tiles take several entries at
// a time into sums of their own.
template <typename V, int W>
void multiply(const float* x, const Segments& segments, float* y) {
  constexpr int kSets = W == 2 ? 4 : W == 8 ? 1 : 2;
  const void* values = segments.values;
  const uint8_t* col = segments.col;
  for (int64_t r = 0; r < segments.count; ++r) {
    float* to = y + row_of(segments, r) * (W * 8);
    int64_t i = segments.crow[r];
    const int64_t end = segments.crow[r + 1];
    __m256 sum[kSets][W];
    for (int w = 0; w < W; ++w) sum[0][w] = _mm256_loadu_ps(to + w * 8);
    if (kSets > 1 && end - i >= 2 * kSets) {
      for (int s = 1; s < kSets; ++s)
        for (int w = 0; w < W; ++w) sum[s][w] = _mm256_setzero_ps();
      for (; i + kSets <= end; i += kSets) {
        for (int s = 0; s < kSets; ++s) {
          const __m256 v = V::broadcast(values, i + s);
          const float* from = x + col[i + s] * (W * 8);
          for (int w = 0; w < W; ++w) sum[s][w] = _mm256_fmadd_ps(v, _mm256_loadu_ps(from + w * 8), sum[s][w]);
        }
      }
      for (int s = 1; s < kSets; ++s)
        for (int w = 0; w < W; ++w) sum[0][w] = _mm256_add_ps(sum[0][w], sum[s][w]);
    }
    for (; i < end; ++i) {
      const __m256 v = V::broadcast(values, i);
      const float* from = x + col[i] * (W * 8);
      for (int w = 0; w < W; ++w) sum[0][w] = _mm256_fmadd_ps(v, _mm256_loadu_ps(from + w * 8), sum[0][w]);
    }
    for (int w = 0; w < W; ++w) _mm256_storeu_ps(to + w * 8, sum[0][w]);
  }
}

template <typename V, int W>
void grad_input(const float* grad, const Segments& segments, float* dx) {
  for (int64_t r = 0; r < segments.count; ++r) {
    const float* row = grad + row_of(segments, r) * (W * 8);
    __m256 g[W];
    for (int w = 0; w < W; ++w) g[w] = _mm256_loadu_ps(row + w * 8);
    for (int64_t i = segments.crow[r]; i < segments.crow[r + 1]; ++i) {
      const __m256 v = V::broadcast(segments.values, i);
      float* to = dx + segments.col[i] * (W * 8);
      for (int w = 0; w < W; ++w) _mm256_storeu_ps(to + w * 8, _mm256_fmadd_ps(v, g[w], _mm256_loadu_ps(to + w * 8)));
    }
  }
}

float lane_sum(__m256 v) {
  const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}

template <int W>
void grad_values(const float* grad, const float* x, const Segments& segments, bool add, float* dvalues) {
  for (int64_t r = 0; r < segments.count; ++r) {
    const float* row = grad + row_of(segments, r) * (W * 8);
    __m256 g[W];
    for (int w = 0; w < W; ++w) g[w] = _mm256_loadu_ps(row + w * 8);
    for (int64_t i = segments.crow[r]; i < segments.crow[r + 1]; ++i) {
      const float* from = x + segments.col[i] * (W * 8);
      __m256 even = _mm256_mul_ps(g[0], _mm256_loadu_ps(from));
      __m256 odd = _mm256_mul_ps(g[1], _mm256_loadu_ps(from + 8));
      for (int w = 2; w < W; w += 2) {
        even = _mm256_fmadd_ps(g[w], _mm256_loadu_ps(from + w * 8), even);
        odd = _mm256_fmadd_ps(g[w + 1], _mm256_loadu_ps(from + w * 8 + 8), odd);
      }
      const float sum = lane_sum(_mm256_add_ps(even, odd));
      dvalues[i] = add ? dvalues[i] + sum : sum;
    }
  }
}

__m256 values8(const void* values, DType dtype, int64_t i) {
  if (dtype == DType::f32) return _mm256_loadu_ps(static_cast<const float*>(values) + i);
  const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(values) + i));
  if (dtype == DType::f16) return _mm256_cvtph_ps(h);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

float value(const void* values, DType dtype, int64_t i) {
  if (dtype == DType::f32) return static_cast<const float*>(values)[i];
  return _mm256_cvtss_f32(dtype == DType::bf16 ? Bf16::broadcast(values, i) : F16::broadcast(values, i));
}

void multiply_row(const float* x, const Segments& w, int64_t n_stride, int64_t order_stride, int64_t panels,
                  int64_t panel, float* y) {
  float sums[kBlockRows] = {};
  const int32_t* crow = w.crow;
  const int32_t* order = w.order;
  for (int64_t p = 0; p < panels; ++p, x += panel, crow += n_stride, order += order_stride) {
    for (int64_t s = 0; s < w.count; ++s) {
      int64_t i = crow[s];
      const int64_t end = crow[s + 1];
      __m256 eight = _mm256_setzero_ps();
      for (; i + 8 <= end; i += 8) {
        const __m256i index = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(w.col + i)));
        eight = _mm256_fmadd_ps(values8(w.values, w.dtype, i), _mm256_i32gather_ps(x, index, 4), eight);
      }
      float sum = lane_sum(eight);
      for (; i < end; ++i) sum += value(w.values, w.dtype, i) * x[w.col[i]];
      sums[order[s] & (kBlockRows - 1)] += sum;
    }
  }
  for (int64_t r = 0; r < w.count; ++r) y[r] = sums[r];
}

template <typename V>
void multiply_any(const float* x, int64_t width, const Segments& w, float* y) {
  switch (width) {
    case 16:
      return multiply<V, 2>(x, w, y);
    case 32:
      return multiply<V, 4>(x, w, y);
    case 48:
      return multiply<V, 6>(x, w, y);
    default:
      return multiply<V, 8>(x, w, y);
  }
}

template <typename V>
void grad_input_any(const float* grad, int64_t width, const Segments& w, float* dx) {
  switch (width) {
    case 16:
      return grad_input<V, 2>(grad, w, dx);
    case 32:
      return grad_input<V, 4>(grad, w, dx);
    case 48:
      return grad_input<V, 6>(grad, w, dx);
    default:
      return grad_input<V, 8>(grad, w, dx);
  }
}

void multiply_entry(const float* x, int64_t width, const Segments& w, float* y) {
  if (w.dtype == DType::f32) return multiply_any<F32>(x, width, w, y);
  if (w.dtype == DType::bf16) return multiply_any<Bf16>(x, width, w, y);
  return multiply_any<F16>(x, width, w, y);
}

void grad_input_entry(const float* grad, int64_t width, const Segments& w, float* dx) {
  if (w.dtype == DType::f32) return grad_input_any<F32>(grad, width, w, dx);
  if (w.dtype == DType::bf16) return grad_input_any<Bf16>(grad, width, w, dx);
  return grad_input_any<F16>(grad, width, w, dx);
}

void grad_values_entry(const float* grad, const float* x, int64_t width, const Segments& w, bool add, float* dvalues) {
  switch (width) {
    case 16:
      return grad_values<2>(grad, x, w, add, dvalues);
    case 32:
      return grad_values<4>(grad, x, w, add, dvalues);
    case 48:
      return grad_values<6>(grad, x, w, add, dvalues);
    default:
      return grad_values<8>(grad, x, w, add, dvalues);
  }
}

}  // namespace

const SparseKernels sparse_kernels_avx2 = {multiply_entry, multiply_row, grad_input_entry, grad_values_entry};

}  // namespace bigmodel
