#include <immintrin.h>

#include "int8_sparse_linear.h"

namespace bigmodel {
namespace {

// The matrix is read once, front to back, but the processor's own prefetching stops at each 4 KiB page.
void prefetch(const int8_t* values, const uint8_t* col, int64_t i) {
  constexpr int64_t kAhead = 512;
  _mm_prefetch(reinterpret_cast<const char*>(values) + (i + kAhead) * 4, _MM_HINT_T0);
  _mm_prefetch(reinterpret_cast<const char*>(col) + i + kAhead, _MM_HINT_T0);
}

// As in sparse_linear_avx512.cpp: 8 blocks and their columns a load, because loads are what limits the loop.
template <int W>
void multiply(const uint32_t* x, const int8_t* values, const uint8_t* col, const int32_t* crow, int64_t rows,
              uint32_t* y) {
  constexpr int kSets = W == 1 ? 4 : 2;
  for (int64_t r = 0; r < rows; ++r, y += W * 16) {
    int64_t i = crow[r];
    const int64_t end = crow[r + 1];
    __m512i sum[kSets][W];
    for (int w = 0; w < W; ++w) sum[0][w] = _mm512_loadu_si512(y + w * 16);
    if (end - i >= 8) {
      for (int s = 1; s < kSets; ++s)
        for (int w = 0; w < W; ++w) sum[s][w] = _mm512_setzero_si512();
      for (; i + 8 <= end; i += 8) {
        prefetch(values, col, i);
        const __m512i eight =
            _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + i * 4)));
        uint64_t columns;
        __builtin_memcpy(&columns, col + i, 8);
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j, columns >>= 8) {
          const __m512i v = _mm512_permutexvar_epi32(_mm512_set1_epi32(j), eight);
          const uint32_t* from = x + (columns & 255) * (W * 16);
          __m512i* to = sum[j % kSets];
          for (int w = 0; w < W; ++w) to[w] = _mm512_dpbusd_epi32(to[w], _mm512_loadu_si512(from + w * 16), v);
        }
      }
      for (int s = 1; s < kSets; ++s)
        for (int w = 0; w < W; ++w) sum[0][w] = _mm512_add_epi32(sum[0][w], sum[s][w]);
    }
    if (i < end) {
      const int left = static_cast<int>(end - i);
      const __mmask8 mask = static_cast<__mmask8>((1 << left) - 1);
      const __m512i some = _mm512_castsi256_si512(_mm256_maskz_loadu_epi32(mask, values + i * 4));
      uint64_t columns = static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_maskz_loadu_epi8(mask, col + i)));
      __m512i lane = _mm512_setzero_si512();
      for (int j = 0; j < left; ++j, columns >>= 8) {
        const __m512i v = _mm512_permutexvar_epi32(lane, some);
        lane = _mm512_add_epi32(lane, _mm512_set1_epi32(1));
        const uint32_t* from = x + (columns & 255) * (W * 16);
        for (int w = 0; w < W; ++w) sum[0][w] = _mm512_dpbusd_epi32(sum[0][w], _mm512_loadu_si512(from + w * 16), v);
      }
    }
    for (int w = 0; w < W; ++w) _mm512_storeu_si512(y + w * 16, sum[0][w]);
  }
}

void multiply_any(const uint32_t* x, int64_t width, const int8_t* values, const uint8_t* col, const int32_t* crow,
                  int64_t rows, uint32_t* y) {
  switch (width) {
    case 16:
      return multiply<1>(x, values, col, crow, rows, y);
    case 32:
      return multiply<2>(x, values, col, crow, rows, y);
    case 48:
      return multiply<3>(x, values, col, crow, rows, y);
    default:
      return multiply<4>(x, values, col, crow, rows, y);
  }
}

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

constexpr int64_t kRowBlock = 512;  // rows whose 16-lane sums (32 KiB) wait in the first-level cache for the next panel

template <bool Wide>
void multiply_row(const uint32_t* x, const int8_t* values, const uint8_t* col, const int32_t* crow, int64_t n_stride,
                  int64_t panels, int64_t panel, int64_t rows, uint32_t* y) {
  alignas(64) uint32_t sums[kRowBlock * 16];
  for (int64_t first = 0; first < rows; first += kRowBlock) {
    const int64_t block = rows - first < kRowBlock ? rows - first : kRowBlock;
    for (int64_t r = 0; r < block; ++r) _mm512_store_si512(sums + r * 16, _mm512_setzero_si512());
    for (int64_t p = 0; p < panels; ++p) {
      const int32_t* begin = crow + p * n_stride + first;
      Table low, high;
      low.load(x + p * panel);
      if (Wide) high.load(x + p * panel + 128);
      for (int64_t r = 0; r < block; ++r) {
        __m512i sum = _mm512_load_si512(sums + r * 16);
        for (int64_t i = begin[r]; i < begin[r + 1]; i += 16) {
          prefetch(values, col, i);
          const int64_t left = begin[r + 1] - i;
          const __mmask16 mask = static_cast<__mmask16>(left >= 16 ? 0xffff : (1 << left) - 1);
          const __m512i index = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, col + i));
          __m512i from = low.at(index);
          if (Wide)
            from = _mm512_mask_blend_epi32(_mm512_test_epi32_mask(index, _mm512_set1_epi32(128)), from, high.at(index));
          sum = _mm512_dpbusd_epi32(sum, from, _mm512_maskz_loadu_epi32(mask, values + i * 4));
        }
        _mm512_store_si512(sums + r * 16, sum);
      }
    }
    for (int64_t r = 0; r < block; ++r)
      y[first + r] = static_cast<uint32_t>(_mm512_reduce_add_epi32(_mm512_load_si512(sums + r * 16)));
  }
}

void multiply_row_any(const uint32_t* x, const int8_t* values, const uint8_t* col, const int32_t* crow,
                      int64_t n_stride, int64_t panels, int64_t panel, int64_t rows, uint32_t* y) {
  if (panel <= 128) return multiply_row<false>(x, values, col, crow, n_stride, panels, panel, rows, y);
  return multiply_row<true>(x, values, col, crow, n_stride, panels, panel, rows, y);
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

const Int8SparseKernels int8_sparse_kernels_avx512vnni = {multiply_any, multiply_row_any, scale};

}  // namespace bigmodel
