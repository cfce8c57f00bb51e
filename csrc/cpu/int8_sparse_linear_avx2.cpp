#include <immintrin.h>

#include "int8_sparse_linear.h"

namespace bigmodel {
namespace {

// Four unsigned times four signed bytes per 32-bit word. vpmaddubsw would saturate (two products reach 64,770), so
// bytes are widened to 16 bits, the even and the odd ones apart: vpmaddwd's sums of two products are exact.
struct Weights {
  __m256i even, odd;

  explicit Weights(__m256i words)
      : even(_mm256_srai_epi16(_mm256_slli_epi16(words, 8), 8)), odd(_mm256_srai_epi16(words, 8)) {}

  __m256i dot(__m256i x) const {
    const __m256i even_x = _mm256_and_si256(x, _mm256_set1_epi16(0xff)), odd_x = _mm256_srli_epi16(x, 8);
    return _mm256_add_epi32(_mm256_madd_epi16(even_x, even), _mm256_madd_epi16(odd_x, odd));
  }
};

__m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
void store(void* to, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(to), v); }

int32_t word(const int8_t* from) {
  int32_t bits;
  __builtin_memcpy(&bits, from, 4);
  return bits;
}

const int8_t* block(const Segments& w, int64_t i) { return static_cast<const int8_t*>(w.values) + i * 4; }

template <int W>
void multiply(const uint32_t* x, const Segments& segments, uint32_t* y) {
  for (int64_t r = 0; r < segments.count; ++r) {
    uint32_t* to = y + (segments.order[r] & (kBlockRows - 1)) * (W * 8);
    __m256i sum[W];
    for (int w = 0; w < W; ++w) sum[w] = load(to + w * 8);
    for (int64_t i = segments.crow[r]; i < segments.crow[r + 1]; ++i) {
      const Weights weights(_mm256_set1_epi32(word(block(segments, i))));
      const uint32_t* from = x + segments.col[i] * (W * 8);
      for (int w = 0; w < W; ++w) sum[w] = _mm256_add_epi32(sum[w], weights.dot(load(from + w * 8)));
    }
    for (int w = 0; w < W; ++w) store(to + w * 8, sum[w]);
  }
}

void multiply_any(const uint32_t* x, int64_t width, const Segments& w, uint32_t* y) {
  switch (width) {
    case 16:
      return multiply<2>(x, w, y);
    case 32:
      return multiply<4>(x, w, y);
    case 48:
      return multiply<6>(x, w, y);
    default:
      return multiply<8>(x, w, y);
  }
}

uint32_t lane_sum(__m256i v) {
  const __m128i quarter = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i pair = _mm_add_epi32(quarter, _mm_shuffle_epi32(quarter, 0x4e));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_add_epi32(pair, _mm_shuffle_epi32(pair, 0xb1))));
}

uint32_t dot4(uint32_t x, const int8_t* w) {
  int32_t sum = 0;
  for (int j = 0; j < 4; ++j) sum += static_cast<int32_t>((x >> (8 * j)) & 255u) * w[j];
  return static_cast<uint32_t>(sum);
}

void multiply_row(const uint32_t* x, const Segments& w, int64_t n_stride, int64_t order_stride, int64_t panels,
                  int64_t panel, uint32_t* y) {
  uint32_t sums[kBlockRows] = {};
  const int32_t* crow = w.crow;
  const int32_t* order = w.order;
  for (int64_t p = 0; p < panels; ++p, x += panel, crow += n_stride, order += order_stride) {
    for (int64_t s = 0; s < w.count; ++s) {
      int64_t i = crow[s];
      const int64_t end = crow[s + 1];
      __m256i eight = _mm256_setzero_si256();
      for (; i + 8 <= end; i += 8) {
        const __m256i index = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(w.col + i)));
        const __m256i from = _mm256_i32gather_epi32(reinterpret_cast<const int*>(x), index, 4);
        eight = _mm256_add_epi32(eight, Weights(load(block(w, i))).dot(from));
      }
      uint32_t sum = lane_sum(eight);
      for (; i < end; ++i) sum += dot4(x[w.col[i]], block(w, i));
      sums[order[s] & (kBlockRows - 1)] += sum;
    }
  }
  for (int64_t r = 0; r < w.count; ++r) y[r] = sums[r];
}

__m256 scaled(__m256i sum, __m256i row_sum, __m256 scale, __m256 weight_scale) {
  const __m256i exact = _mm256_sub_epi32(sum, _mm256_slli_epi32(row_sum, 7));
  return _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(exact), scale), weight_scale);
}

void scale(uint32_t* y, int64_t width, int64_t rows, const int32_t* row_sum, const float* scale,
           const float* weight_scale) {
  if (width == 1) {
    int64_t r = 0;
    for (; r + 8 <= rows; r += 8)
      _mm256_storeu_ps(reinterpret_cast<float*>(y + r), scaled(load(y + r), load(row_sum + r), _mm256_set1_ps(scale[0]),
                                                               _mm256_loadu_ps(weight_scale + r)));
    for (; r < rows; ++r) {
      const uint32_t exact = y[r] - 128u * static_cast<uint32_t>(row_sum[r]);
      const float result = static_cast<float>(static_cast<int32_t>(exact)) * scale[0] * weight_scale[r];
      __builtin_memcpy(y + r, &result, 4);
    }
    return;
  }
  for (int64_t r = 0; r < rows; ++r, y += width) {
    const __m256i sum = _mm256_set1_epi32(row_sum[r]);
    const __m256 weight = _mm256_set1_ps(weight_scale[r]);
    for (int64_t m = 0; m < width; m += 8)
      _mm256_storeu_ps(reinterpret_cast<float*>(y + m), scaled(load(y + m), sum, _mm256_loadu_ps(scale + m), weight));
  }
}

}  // namespace

const Int8SparseKernels int8_sparse_kernels_avx2 = {multiply_any, multiply_row, scale};

}  // namespace bigmodel
