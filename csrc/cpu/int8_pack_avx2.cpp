// Packing transposes 4-byte groups: 8 rows by 8 groups at a time in registers, what is left over one by one.
#include <immintrin.h>

#include <cstring>

#include "int8_panel.h"

namespace bigmodel {
namespace {

void transpose8x8(const int8_t* weight, int64_t stride, int8_t* b) {
  __m256i row[8], pair[8], quad[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) row[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight + i * stride));
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {  // rows i and i + 1: groups 0 1 | 4 5, then 2 3 | 6 7
    pair[i] = _mm256_unpacklo_epi32(row[i], row[i + 1]);
    pair[i + 1] = _mm256_unpackhi_epi32(row[i], row[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {  // four rows: groups 0 | 4, 1 | 5, 2 | 6, 3 | 7
    quad[i] = _mm256_unpacklo_epi64(pair[i], pair[i + 2]);
    quad[i + 1] = _mm256_unpackhi_epi64(pair[i], pair[i + 2]);
    quad[i + 2] = _mm256_unpacklo_epi64(pair[i + 1], pair[i + 3]);
    quad[i + 3] = _mm256_unpackhi_epi64(pair[i + 1], pair[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m256i low = _mm256_permute2x128_si256(quad[i], quad[i + 4], 0x20);
    const __m256i high = _mm256_permute2x128_si256(quad[i], quad[i + 4], 0x31);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(b + i * 4 * kPanelColumns), low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(b + (i + 4) * 4 * kPanelColumns), high);
  }
}

void copy(const int8_t* weight, int64_t stride, int64_t n0, int64_t n1, int64_t g0, int64_t g1, int8_t* b) {
  for (int64_t n = n0; n < n1; ++n)
    for (int64_t g = g0; g < g1; ++g) std::memcpy(b + (g * kPanelColumns + n) * 4, weight + n * stride + g * 4, 4);
}

}  // namespace

void int8_pack_avx2(const int8_t* weight, int64_t stride, int64_t rows, int64_t groups, int8_t* b) {
  const int64_t rows8 = rows & ~int64_t{7}, groups8 = groups & ~int64_t{7};
  for (int64_t n = 0; n < rows8; n += 8)
    for (int64_t g = 0; g < groups8; g += 8)
      transpose8x8(weight + n * stride + g * 4, stride, b + (g * kPanelColumns + n) * 4);
  copy(weight, stride, 0, rows8, groups8, groups, b);
  copy(weight, stride, rows8, rows, 0, groups, b);
}

}  // namespace bigmodel
