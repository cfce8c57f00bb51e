// Loads, and the search for the largest magnitude, of quantize_rows_avx2.cpp and conv_image_avx2.cpp. Included by those
// two files only; all in an anonymous namespace.
#pragma once

#include <immintrin.h>

#include "../common/half.h"
#include "../common/view.h"

namespace bigmodel {
namespace {

template <DType dtype>
inline __m256 load8(const void* x, int64_t i) {
  if (dtype == DType::f32) return _mm256_loadu_ps(static_cast<const float*>(x) + i);
  const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(x) + i));
  if (dtype == DType::f16) return _mm256_cvtph_ps(h);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

template <DType dtype>
inline float load1(const void* x, int64_t i) {
  if (dtype == DType::f32) return static_cast<const float*>(x)[i];
  const uint16_t h = static_cast<const uint16_t*>(x)[i];
  return dtype == DType::bf16 ? bf16_to_float(h) : f16_to_float(h);
}

// Without its sign a float's bit pattern orders as an integer, with infinity and then NaN on top.
inline __m256i larger(__m256i best, __m256 value) {
  return _mm256_max_epu32(best, _mm256_and_si256(_mm256_castps_si256(value), _mm256_set1_epi32(0x7fffffff)));
}

inline uint32_t largest_lane(__m256i best) {
  alignas(32) uint32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), best);
  uint32_t most = 0;
  for (int j = 0; j < 8; ++j) most = lanes[j] > most ? lanes[j] : most;
  return most;
}

template <DType dtype>
uint32_t largest_magnitude(const void* x, int64_t row, int64_t k) {
  __m256i best0 = _mm256_setzero_si256(), best1 = best0;
  int64_t i = 0;
  for (; i + 16 <= k; i += 16) {
    best0 = larger(best0, load8<dtype>(x, row + i));
    best1 = larger(best1, load8<dtype>(x, row + i + 8));
  }
  uint32_t best = largest_lane(_mm256_max_epu32(best0, best1));
  for (; i < k; ++i) {
    const uint32_t bits = float_to_bits(load1<dtype>(x, row + i)) & 0x7fffffffu;
    best = bits > best ? bits : best;
  }
  return best;
}

}  // namespace
}  // namespace bigmodel
