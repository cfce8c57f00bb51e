// vpermw looks up the low five bits of each 16-bit lane in a vector of 32, and ignores the bits above, so codes need
// shifts and no masks. Wide tables use all five bits, and with vpermi2w six: 5 + 5 + 6 are a word. Narrow tables hold
// their 16 sums twice, so that the fifth bit, which belongs to the next four inputs, does not matter: they are for one
// row of many inputs, whose wide tables would not stay in the first-level cache.
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

// Of five inputs the 32 sums, lane by lane.
inline __m512i sums_of_five(const int8_t* q) {
  const __m512i lane = _mm512_set_epi16(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12,
                                        11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  __m512i sums = _mm512_setzero_si512();
#pragma GCC unroll 5
  for (int j = 0; j < 5; ++j) {
    const __mmask32 added = _mm512_test_epi16_mask(lane, _mm512_set1_epi16(static_cast<short>(1 << j)));
    const __m512i input = _mm512_set1_epi16(q[j]), opposite = _mm512_set1_epi16(static_cast<short>(-q[j]));
    sums = _mm512_add_epi16(sums, _mm512_mask_blend_epi16(added, opposite, input));
  }
  return sums;
}

void make_wide_tables(const int8_t* q, int64_t words, char* tables) {
  for (int64_t w = 0; w < words; ++w, q += 16, tables += kBinaryWideBytes) {
    const __m512i sixth = _mm512_set1_epi16(q[15]), last = sums_of_five(q + 10);
    _mm512_store_si512(tables, sums_of_five(q));
    _mm512_store_si512(tables + 64, sums_of_five(q + 5));
    _mm512_store_si512(tables + 128, _mm512_sub_epi16(last, sixth));
    _mm512_store_si512(tables + 192, _mm512_add_epi16(last, sixth));
  }
}

// Number j of the tables of a word and a row.
template <bool wide>
inline __m512i table(const char* at, int j) {
  if (wide) return _mm512_load_si512(at + 64 * j);
  return _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i*>(at + 32 * j)));
}

// The tables of `rows` rows and the weights in use; both advance.
template <int rows>
struct At {
  const char* tables[rows];
  const uint8_t* packed;
  const uint16_t* scales;
};

template <int bits, int rows>
using Sums = __m512i[bits][rows][kHalves];

// sums += what a vector of words stands for in each row's tables.
template <bool wide, int rows>
__attribute__((always_inline)) inline void look_up(__m512i code, const __m512i (&tables)[rows][4],
                                                   __m512i (&sums)[rows][kHalves], int half) {
  constexpr int kLookUps = wide ? 3 : 4, kShift = wide ? 5 : 4;
#pragma GCC unroll 4
  for (int j = 0; j < kLookUps; ++j) {
#pragma GCC unroll 2
    for (int r = 0; r < rows; ++r) {
      const __m512i found = wide && j == 2 ? _mm512_permutex2var_epi16(tables[r][2], code, tables[r][3])
                                           : _mm512_permutexvar_epi16(code, tables[r][j]);
      sums[r][half] = _mm512_add_epi16(sums[r][half], found);
    }
    if (j + 1 < kLookUps) code = _mm512_srli_epi16(code, kShift);
  }
}

// Adds `words` words, at most kBinaryPieceWords, to int16 sums. Each line of weights that is read, the one kAheadBytes
// further is fetched.
template <int bits, int rows, bool wide, bool fetch>
__attribute__((always_inline)) inline void add_words(At<rows>& at, int64_t words, Sums<bits, rows>& sums) {
#pragma GCC unroll 8
  for (int b = 0; b < bits; ++b)
#pragma GCC unroll 2
    for (int r = 0; r < rows; ++r) sums[b][r][0] = sums[b][r][1] = _mm512_setzero_si512();
  for (int64_t w = 0; w < words; ++w) {
    __m512i tables[rows][4];
#pragma GCC unroll 2
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) tables[r][j] = table<wide>(at.tables[r], j);
      at.tables[r] += wide ? kBinaryWideBytes : kBinaryTableBytes;
    }
#pragma GCC unroll 8
    for (int b = 0; b < bits; ++b) {
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) {
        if (fetch) _mm_prefetch(reinterpret_cast<const char*>(at.packed) + kAheadBytes, _MM_HINT_T0);
        look_up<wide, rows>(_mm512_loadu_si512(at.packed), tables, sums[b], h);
        at.packed += 64;
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
template <int bits, int rows, bool wide, bool fetch>
__attribute__((always_inline)) inline void short_group(At<rows>& at, int64_t words, float* z) {
  Sums<bits, rows> sums;
  add_words<bits, rows, wide, fetch>(at, words, sums);
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
inline void add_to(int32_t* totals, const __m512i (&sums)[kHalves]) {
  _mm512_storeu_si512(totals + 16 * quarter,
                      _mm512_add_epi32(_mm512_loadu_si512(totals + 16 * quarter), widened<quarter>(sums)));
}

template <int bits, int rows, bool wide, bool fetch>
void long_group(At<rows>& at, int64_t words, float* z) {
  alignas(64) int32_t totals[bits][rows][kBinaryColumns] = {};
  for (int64_t left = words; left > 0; left -= kBinaryPieceWords) {
    Sums<bits, rows> sums;
    add_words<bits, rows, wide, fetch>(at, left < kBinaryPieceWords ? left : kBinaryPieceWords, sums);
#pragma GCC unroll 8
    for (int b = 0; b < bits; ++b) {
#pragma GCC unroll 2
      for (int r = 0; r < rows; ++r) {
        add_to<0>(totals[b][r], sums[b][r]);
        add_to<1>(totals[b][r], sums[b][r]);
        add_to<2>(totals[b][r], sums[b][r]);
        add_to<3>(totals[b][r], sums[b][r]);
      }
    }
  }
  for (int b = 0; b < bits; ++b, at.scales += kBinaryColumns)
    for (int r = 0; r < rows; ++r)
      for (int n = 0; n < kBinaryColumns; n += 16) {
        float* to = z + r * kBinaryColumns + n;
        _mm512_storeu_ps(to, plus_scaled(_mm512_loadu_ps(to), _mm512_loadu_si512(totals[b][r] + n), at.scales + n));
      }
}

template <int bits, int rows, bool wide, bool fetch>
void multiply_rows(const BinaryCodedPanel& p, int64_t row) {
  At<rows> at;
  for (int r = 0; r < rows; ++r) at.tables[r] = p.tables + (row + r) * p.table_stride;
  at.packed = p.packed;
  at.scales = p.scales;
  float* z = p.z + row * kBinaryColumns;
  for (int64_t g = 0; g < p.groups; ++g) {
    const int64_t words = g + 1 == p.groups ? p.last_words : p.group_words;
    if (words <= kBinaryPieceWords) {
      short_group<bits, rows, wide, fetch>(at, words, z);
    } else {
      long_group<bits, rows, wide, fetch>(at, words, z);
    }
  }
}

// Two rows share the shifts and the reading of weights, while their sums fit in the registers. The first pass over the
// weights fetches those that follow.
template <int bits>
void multiply_wide(const BinaryCodedPanel& p) {
  constexpr int kRows = bits <= 4 ? 2 : 1;
  int64_t row = 0;
  if (p.rows % kRows == 1 || kRows == 1) {
    multiply_rows<bits, 1, true, true>(p, row++);
  } else {
    multiply_rows<bits, kRows, true, true>(p, row);
    row += kRows;
  }
  for (; row < p.rows; row += kRows) multiply_rows<bits, kRows, true, false>(p, row);
}

template <int bits>
void multiply_narrow(const BinaryCodedPanel& p) {
  for (int64_t row = 0; row < p.rows; ++row) multiply_rows<bits, 1, false, true>(p, row);
}

using Multiply = void (*)(const BinaryCodedPanel&);
constexpr Multiply wide_by_bits[kBinaryMostBits] = {multiply_wide<1>, multiply_wide<2>, multiply_wide<3>,
                                                    multiply_wide<4>, multiply_wide<5>, multiply_wide<6>,
                                                    multiply_wide<7>, multiply_wide<8>};
constexpr Multiply narrow_by_bits[kBinaryMostBits] = {multiply_narrow<1>, multiply_narrow<2>, multiply_narrow<3>,
                                                      multiply_narrow<4>, multiply_narrow<5>, multiply_narrow<6>,
                                                      multiply_narrow<7>, multiply_narrow<8>};

void multiply(const BinaryCodedPanel& p) { (p.wide ? wide_by_bits : narrow_by_bits)[p.bits - 1](p); }

}  // namespace

const BinaryCodedKernels binary_coded_kernels_avx512 = {make_tables, make_wide_tables, multiply, finish};

}  // namespace bigmodel
