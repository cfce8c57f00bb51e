// vpermw looks up the low five bits of each 16-bit lane in a vector of 32: a table of 16 is there twice, so that the
// fifth bit, which belongs to the next four inputs, does not matter, and a word needs three shifts and no masks.
#include <immintrin.h>

#include "binary_coded_panel.h"
#include "simd_avx512.h"

// After simd_avx512.h.
#include "binary_coded_finish.h"

namespace bigmodel {
namespace {

constexpr int kHalves = 2;             // vectors of 32 outputs
constexpr int64_t kAheadBytes = 8192;  // between the weights in use and those being fetched

void make_tables(const int8_t* q, int64_t words, char* tables) {
  // Byte j of lane `code`: 2 if input j is added, 0 if it is subtracted; less the sum of all four.
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m512i twice = _mm512_setzero_si512();
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i bit = _mm512_and_si512(_mm512_srli_epi32(lane, static_cast<unsigned>(j)), _mm512_set1_epi32(1));
    twice = _mm512_or_si512(twice, _mm512_slli_epi32(bit, static_cast<unsigned>(8 * j + 1)));
  }
  const __m512i one8 = _mm512_set1_epi8(1), one16 = _mm512_set1_epi16(1);
  for (int64_t i = 0; i < 4 * words; ++i, q += 4, tables += 32) {
    int32_t four;
    std::memcpy(&four, q, 4);
    const __m512i inputs = _mm512_set1_epi32(four);
    const __m512i added = _mm512_madd_epi16(_mm512_maddubs_epi16(twice, inputs), one16);
    const __m512i all = _mm512_madd_epi16(_mm512_maddubs_epi16(one8, inputs), one16);
    _mm256_store_si256(reinterpret_cast<__m256i*>(tables), _mm512_cvtepi32_epi16(_mm512_sub_epi32(added, all)));
  }
}

// What `rows` rows of tables and the weights in use are; both advance.
template <int rows>
struct At {
  const char* tables[rows];
  const uint16_t* packed;
  const uint16_t* scales;
};

template <int bits, int rows>
using Sums = __m512i[bits][rows][kHalves];

// Adds `words` words, at most kBinaryPieceWords, to int16 sums. Each line of weights that is read, the one kAheadBytes
// further is fetched.
template <int bits, int rows, bool fetch>
__attribute__((always_inline)) inline void add_words(At<rows>& at, int64_t words, Sums<bits, rows>& sums) {
#pragma GCC unroll 8
  for (int b = 0; b < bits; ++b)
#pragma GCC unroll 2
    for (int r = 0; r < rows; ++r) sums[b][r][0] = sums[b][r][1] = _mm512_setzero_si512();
  for (int64_t w = 0; w < words; ++w) {
    __m512i table[rows][4];
#pragma GCC unroll 2
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j)
        table[r][j] = _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i*>(at.tables[r]) + j));
      at.tables[r] += kBinaryTableBytes;
    }
#pragma GCC unroll 8
    for (int b = 0; b < bits; ++b) {
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) {
        if (fetch) _mm_prefetch(reinterpret_cast<const char*>(at.packed) + kAheadBytes, _MM_HINT_T0);
        __m512i code = _mm512_loadu_si512(at.packed);
        at.packed += 32;
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 2
          for (int r = 0; r < rows; ++r)
            sums[b][r][h] = _mm512_add_epi16(sums[b][r][h], _mm512_permutexvar_epi16(code, table[r][j]));
          if (j < 3) code = _mm512_srli_epi16(code, 4);
        }
      }
    }
  }
}

// 16 sums of 64, quarter i, as int32.
template <int quarter>
inline __m512i widened(const __m512i (&sums)[kHalves]) {
  return _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(sums[quarter / 2], quarter % 2));
}

inline __m512 plus_scaled(__m512 z, __m512i sums, const uint16_t* scales) {
  const __m512 alpha = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales)));
  return z + alpha * _mm512_cvtepi32_ps(sums);
}

template <int quarter, int bits, int rows>
__attribute__((always_inline)) inline void add_quarter(const Sums<bits, rows>& sums, const uint16_t* scales, float* z) {
#pragma GCC unroll 2
  for (int r = 0; r < rows; ++r) {
    float* to = z + r * kBinaryColumns + 16 * quarter;
    __m512 y = _mm512_loadu_ps(to);
#pragma GCC unroll 8
    for (int b = 0; b < bits; ++b)
      y = plus_scaled(y, widened<quarter>(sums[b][r]), scales + b * kBinaryColumns + 16 * quarter);
    _mm512_storeu_ps(to, y);
  }
}

// One group that int16 sums hold.
template <int bits, int rows, bool fetch>
__attribute__((always_inline)) inline void short_group(At<rows>& at, int64_t words, float* z) {
  Sums<bits, rows> sums;
  add_words<bits, rows, fetch>(at, words, sums);
  if (fetch) {
#pragma GCC unroll 16
    for (int b = 0; b < 2 * bits; ++b)
      _mm_prefetch(reinterpret_cast<const char*>(at.scales) + kAheadBytes / 8 + 64 * b, _MM_HINT_T0);
  }
  add_quarter<0, bits, rows>(sums, at.scales, z);
  add_quarter<1, bits, rows>(sums, at.scales, z);
  add_quarter<2, bits, rows>(sums, at.scales, z);
  add_quarter<3, bits, rows>(sums, at.scales, z);
  at.scales += bits * kBinaryColumns;
}

template <int quarter>
inline void add_to(int32_t* wide, const __m512i (&sums)[kHalves]) {
  _mm512_storeu_si512(wide + 16 * quarter,
                      _mm512_add_epi32(_mm512_loadu_si512(wide + 16 * quarter), widened<quarter>(sums)));
}

template <int bits, int rows, bool fetch>
void long_group(At<rows>& at, int64_t words, float* z) {
  alignas(64) int32_t wide[bits][rows][kBinaryColumns] = {};
  for (int64_t left = words; left > 0; left -= kBinaryPieceWords) {
    Sums<bits, rows> sums;
    add_words<bits, rows, fetch>(at, left < kBinaryPieceWords ? left : kBinaryPieceWords, sums);
#pragma GCC unroll 8
    for (int b = 0; b < bits; ++b) {
#pragma GCC unroll 2
      for (int r = 0; r < rows; ++r) {
        add_to<0>(wide[b][r], sums[b][r]);
        add_to<1>(wide[b][r], sums[b][r]);
        add_to<2>(wide[b][r], sums[b][r]);
        add_to<3>(wide[b][r], sums[b][r]);
      }
    }
  }
  for (int b = 0; b < bits; ++b, at.scales += kBinaryColumns)
    for (int r = 0; r < rows; ++r)
      for (int n = 0; n < kBinaryColumns; n += 16) {
        float* to = z + r * kBinaryColumns + n;
        _mm512_storeu_ps(to, plus_scaled(_mm512_loadu_ps(to), _mm512_loadu_si512(wide[b][r] + n), at.scales + n));
      }
}

template <int bits, int rows, bool fetch>
void multiply_rows(const BinaryCodedPanel& p, int64_t row) {
  At<rows> at;
  for (int r = 0; r < rows; ++r) at.tables[r] = p.tables + (row + r) * p.table_stride;
  at.packed = p.packed;
  at.scales = p.scales;
  float* z = p.z + row * kBinaryColumns;
  for (int64_t g = 0; g < p.groups; ++g) {
    const int64_t words = g + 1 == p.groups ? p.last_words : p.group_words;
    if (words <= kBinaryPieceWords) {
      short_group<bits, rows, fetch>(at, words, z);
    } else {
      long_group<bits, rows, fetch>(at, words, z);
    }
  }
}

// Two rows share the shifts and the reading of weights, while their sums fit in the registers. The first pass over the
// weights fetches those that follow.
template <int bits>
void multiply_bits(const BinaryCodedPanel& p) {
  constexpr int kRows = bits <= 4 ? 2 : 1;
  int64_t row = 0;
  if (p.rows % kRows == 1 || kRows == 1) {
    multiply_rows<bits, 1, true>(p, row++);
  } else {
    multiply_rows<bits, kRows, true>(p, row);
    row += kRows;
  }
  for (; row < p.rows; row += kRows) multiply_rows<bits, kRows, false>(p, row);
}

void multiply(const BinaryCodedPanel& p) {
  constexpr void (*by_bits[kBinaryMostBits])(const BinaryCodedPanel&) = {
      multiply_bits<1>, multiply_bits<2>, multiply_bits<3>, multiply_bits<4>,
      multiply_bits<5>, multiply_bits<6>, multiply_bits<7>, multiply_bits<8>};
  by_bits[p.bits - 1](p);
}

}  // namespace

const BinaryCodedKernels binary_coded_kernels_avx512 = {make_tables, multiply, finish};

}  // namespace bigmodel
