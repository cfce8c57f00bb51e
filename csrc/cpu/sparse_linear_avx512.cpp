#include <immintrin.h>

#include "sparse_linear.h"

namespace bigmodel {
namespace {

// How values of each dtype are read: one broadcast, 8 for the matrix products, or 16 (of which `mask` are wanted).
struct F32 {
  static constexpr int kBytes = 4;
  static __m512 broadcast(const void* values, int64_t i) {
    return _mm512_set1_ps(static_cast<const float*>(values)[i]);
  }
  static __m256 load8(const void* values, int64_t i) { return _mm256_loadu_ps(static_cast<const float*>(values) + i); }
  static __m256 load8(const void* values, int64_t i, __mmask8 mask) {
    return _mm256_maskz_loadu_ps(mask, static_cast<const float*>(values) + i);
  }
  static __m512 load16(const void* values, int64_t i, __mmask16 mask) {
    return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(values) + i);
  }
};

struct Bf16 {
  static constexpr int kBytes = 2;
  static __m512 broadcast(const void* values, int64_t i) {
    const uint32_t bits = static_cast<const uint16_t*>(values)[i];
    return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(bits << 16)));
  }
  static __m256 load8(const void* values, int64_t i, __mmask8 mask = 0xff) {
    const __m128i h = _mm_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(values) + i);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
  }
  static __m512 load16(const void* values, int64_t i, __mmask16 mask) {
    const __m256i h = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(values) + i);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
  }
};

struct F16 {
  static constexpr int kBytes = 2;
  static __m512 broadcast(const void* values, int64_t i) {
    return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<const int16_t*>(values)[i]));
  }
  static __m256 load8(const void* values, int64_t i, __mmask8 mask = 0xff) {
    return _mm256_cvtph_ps(_mm_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(values) + i));
  }
  static __m512 load16(const void* values, int64_t i, __mmask16 mask) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(values) + i));
  }
};

// The matrix is read once, front to back, but the processor's own prefetching stops at each 4 KiB page.
template <typename V>
void prefetch(const void* values, const uint8_t* col, int64_t i) {
  constexpr int64_t kAhead = 512;
  _mm_prefetch(static_cast<const char*>(values) + (i + kAhead) * V::kBytes, _MM_HINT_T0);
  _mm_prefetch(reinterpret_cast<const char*>(col) + i + kAhead, _MM_HINT_T0);
}

// The processor's loads are what limits this loop: four or less of x a value, two of them a cycle. So 8 values and 8
// columns are loaded at once and taken from registers. Alternating sums, because one fused multiply-add waits four
// cycles for the one before it on the same register.
template <typename V, int W>
void multiply(const float* x, const void* values, const uint8_t* col, const int32_t* crow, int64_t rows, float* y) {
  constexpr int kSets = W == 1 ? 4 : 2;
  for (int64_t r = 0; r < rows; ++r, y += W * 16) {
    int64_t i = crow[r];
    const int64_t end = crow[r + 1];
    __m512 sum[kSets][W];
    for (int w = 0; w < W; ++w) sum[0][w] = _mm512_loadu_ps(y + w * 16);
    if (end - i >= 8) {
      for (int s = 1; s < kSets; ++s)
        for (int w = 0; w < W; ++w) sum[s][w] = _mm512_setzero_ps();
      for (; i + 8 <= end; i += 8) {
        prefetch<V>(values, col, i);
        const __m512 eight = _mm512_castps256_ps512(V::load8(values, i));
        uint64_t columns;
        __builtin_memcpy(&columns, col + i, 8);
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j, columns >>= 8) {
          const __m512 v = _mm512_permutexvar_ps(_mm512_set1_epi32(j), eight);
          const float* from = x + (columns & 255) * (W * 16);
          __m512* to = sum[j % kSets];
          for (int w = 0; w < W; ++w) to[w] = _mm512_fmadd_ps(v, _mm512_loadu_ps(from + w * 16), to[w]);
        }
      }
      for (int s = 1; s < kSets; ++s)
        for (int w = 0; w < W; ++w) sum[0][w] = _mm512_add_ps(sum[0][w], sum[s][w]);
    }
    if (i < end) {
      const int left = static_cast<int>(end - i);
      const __mmask8 mask = static_cast<__mmask8>((1 << left) - 1);
      const __m512 some = _mm512_castps256_ps512(V::load8(values, i, mask));
      uint64_t columns = static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_maskz_loadu_epi8(mask, col + i)));
      __m512i lane = _mm512_setzero_si512();
      for (int j = 0; j < left; ++j, columns >>= 8) {
        const __m512 v = _mm512_permutexvar_ps(lane, some);
        lane = _mm512_add_epi32(lane, _mm512_set1_epi32(1));
        const float* from = x + (columns & 255) * (W * 16);
        for (int w = 0; w < W; ++w) sum[0][w] = _mm512_fmadd_ps(v, _mm512_loadu_ps(from + w * 16), sum[0][w]);
      }
    }
    for (int w = 0; w < W; ++w) _mm512_storeu_ps(y + w * 16, sum[0][w]);
  }
}

template <typename V, int W>
void grad_input(const float* grad, const void* values, const uint8_t* col, const int32_t* crow, int64_t rows,
                float* dx) {
  for (int64_t r = 0; r < rows; ++r, grad += W * 16) {
    __m512 g[W];
    for (int w = 0; w < W; ++w) g[w] = _mm512_loadu_ps(grad + w * 16);
    for (int64_t i = crow[r]; i < crow[r + 1]; ++i) {
      const __m512 v = V::broadcast(values, i);
      float* to = dx + col[i] * (W * 16);
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
void grad_values(const float* grad, const float* x, const uint8_t* col, const int32_t* crow, int64_t rows, bool add,
                 float* dvalues) {
  for (int64_t r = 0; r < rows; ++r, grad += W * 16) {
    const int64_t end = crow[r + 1];
    __m512 g[W];
    for (int w = 0; w < W; ++w) g[w] = _mm512_loadu_ps(grad + w * 16);
    for (int64_t i = crow[r]; i < end; i += 4) {
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

// A row of activations' panel in registers, 128 floats each, looked up by permutation instead of gathering.
struct Table {
  __m512 part[8];

  void load(const float* x) {
    for (int i = 0; i < 8; ++i) part[i] = _mm512_loadu_ps(x + i * 16);
  }

  // x[index & 127]
  __m512 at(__m512i index) const {
    const __mmask16 bit5 = _mm512_test_epi32_mask(index, _mm512_set1_epi32(32));
    const __mmask16 bit6 = _mm512_test_epi32_mask(index, _mm512_set1_epi32(64));
    const __m512 a = _mm512_permutex2var_ps(part[0], index, part[1]),
                 b = _mm512_permutex2var_ps(part[2], index, part[3]);
    const __m512 c = _mm512_permutex2var_ps(part[4], index, part[5]),
                 d = _mm512_permutex2var_ps(part[6], index, part[7]);
    return _mm512_mask_blend_ps(bit6, _mm512_mask_blend_ps(bit5, a, b), _mm512_mask_blend_ps(bit5, c, d));
  }
};

constexpr int64_t kRowBlock = 512;  // rows whose 16-lane sums (32 KiB) wait in the first-level cache for the next panel

template <typename V, bool Wide>
void multiply_row(const float* x, const void* values, const uint8_t* col, const int32_t* crow, int64_t n_stride,
                  int64_t panels, int64_t panel, int64_t rows, float* y) {
  alignas(64) float sums[kRowBlock * 16];
  for (int64_t first = 0; first < rows; first += kRowBlock) {
    const int64_t block = rows - first < kRowBlock ? rows - first : kRowBlock;
    for (int64_t r = 0; r < block; ++r) _mm512_store_ps(sums + r * 16, _mm512_setzero_ps());
    for (int64_t p = 0; p < panels; ++p) {
      const int32_t* begin = crow + p * n_stride + first;
      Table low, high;
      low.load(x + p * panel);
      if (Wide) high.load(x + p * panel + 128);
      for (int64_t r = 0; r < block; ++r) {
        __m512 sum = _mm512_load_ps(sums + r * 16);
        for (int64_t i = begin[r]; i < begin[r + 1]; i += 16) {
          prefetch<V>(values, col, i);
          const int64_t left = begin[r + 1] - i;
          const __mmask16 mask = static_cast<__mmask16>(left >= 16 ? 0xffff : (1 << left) - 1);
          const __m512i index = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, col + i));
          __m512 from = low.at(index);
          if (Wide)
            from = _mm512_mask_blend_ps(_mm512_test_epi32_mask(index, _mm512_set1_epi32(128)), from, high.at(index));
          sum = _mm512_mask3_fmadd_ps(V::load16(values, i, mask), from, sum, mask);
        }
        _mm512_store_ps(sums + r * 16, sum);
      }
    }
    for (int64_t r = 0; r < block; ++r) y[first + r] = _mm512_reduce_add_ps(_mm512_load_ps(sums + r * 16));
  }
}

template <typename V>
struct Dispatch {
  static void multiply_any(const float* x, int64_t width, const void* values, const uint8_t* col, const int32_t* crow,
                           int64_t rows, float* y) {
    switch (width) {
      case 16:
        return multiply<V, 1>(x, values, col, crow, rows, y);
      case 32:
        return multiply<V, 2>(x, values, col, crow, rows, y);
      case 48:
        return multiply<V, 3>(x, values, col, crow, rows, y);
      default:
        return multiply<V, 4>(x, values, col, crow, rows, y);
    }
  }
  static void grad_input_any(const float* grad, int64_t width, const void* values, const uint8_t* col,
                             const int32_t* crow, int64_t rows, float* dx) {
    switch (width) {
      case 16:
        return grad_input<V, 1>(grad, values, col, crow, rows, dx);
      case 32:
        return grad_input<V, 2>(grad, values, col, crow, rows, dx);
      case 48:
        return grad_input<V, 3>(grad, values, col, crow, rows, dx);
      default:
        return grad_input<V, 4>(grad, values, col, crow, rows, dx);
    }
  }
  static void multiply_row_any(const float* x, const void* values, const uint8_t* col, const int32_t* crow,
                               int64_t n_stride, int64_t panels, int64_t panel, int64_t rows, float* y) {
    if (panel <= 128) return multiply_row<V, false>(x, values, col, crow, n_stride, panels, panel, rows, y);
    return multiply_row<V, true>(x, values, col, crow, n_stride, panels, panel, rows, y);
  }
};

void multiply_entry(const float* x, int64_t width, const void* values, DType dtype, const uint8_t* col,
                    const int32_t* crow, int64_t rows, float* y) {
  if (dtype == DType::f32) return Dispatch<F32>::multiply_any(x, width, values, col, crow, rows, y);
  if (dtype == DType::bf16) return Dispatch<Bf16>::multiply_any(x, width, values, col, crow, rows, y);
  return Dispatch<F16>::multiply_any(x, width, values, col, crow, rows, y);
}

void multiply_row_entry(const float* x, const void* values, DType dtype, const uint8_t* col, const int32_t* crow,
                        int64_t n_stride, int64_t panels, int64_t panel, int64_t rows, float* y) {
  if (dtype == DType::f32)
    return Dispatch<F32>::multiply_row_any(x, values, col, crow, n_stride, panels, panel, rows, y);
  if (dtype == DType::bf16)
    return Dispatch<Bf16>::multiply_row_any(x, values, col, crow, n_stride, panels, panel, rows, y);
  return Dispatch<F16>::multiply_row_any(x, values, col, crow, n_stride, panels, panel, rows, y);
}

void grad_input_entry(const float* grad, int64_t width, const void* values, DType dtype, const uint8_t* col,
                      const int32_t* crow, int64_t rows, float* dx) {
  if (dtype == DType::f32) return Dispatch<F32>::grad_input_any(grad, width, values, col, crow, rows, dx);
  if (dtype == DType::bf16) return Dispatch<Bf16>::grad_input_any(grad, width, values, col, crow, rows, dx);
  return Dispatch<F16>::grad_input_any(grad, width, values, col, crow, rows, dx);
}

void grad_values_entry(const float* grad, const float* x, int64_t width, const uint8_t* col, const int32_t* crow,
                       int64_t rows, bool add, float* dvalues) {
  switch (width) {
    case 16:
      return grad_values<1>(grad, x, col, crow, rows, add, dvalues);
    case 32:
      return grad_values<2>(grad, x, col, crow, rows, add, dvalues);
    case 48:
      return grad_values<3>(grad, x, col, crow, rows, add, dvalues);
    default:
      return grad_values<4>(grad, x, col, crow, rows, add, dvalues);
  }
}

}  // namespace

const SparseKernels sparse_kernels_avx512 = {multiply_entry, multiply_row_entry, grad_input_entry, grad_values_entry};

}  // namespace bigmodel
