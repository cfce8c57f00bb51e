// vpshufb looks up 16 bytes by four bits, so a table of int16 is one of low and one of high bytes. Of two vectors of
// words the lower bytes make one vector and the upper bytes another; what is looked up for one of their halves is put
// together to int16 again by interleaving, which also restores the order.
#include <immintrin.h>

#include "binary_coded_panel.h"
#include "simd_avx2.h"

// After simd_avx2.h.
#include "binary_coded_finish.h"

namespace bigmodel {
namespace {

constexpr int64_t kAheadBytes = 8192;  // between the weights in use and those being fetched
constexpr int kTileColumns = 32;

// Per word [4][2][16] bytes: the low ones, then the high ones.
void make_tables(const int8_t* q, int64_t words, char* tables) {
  // Byte j of lane `code`: 2 if input j is added, 0 if it is subtracted; less the sum of all four.
  const auto twice = [](int first) {
    const __m256i lane = _mm256_add_epi32(_mm256_set1_epi32(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    __m256i bytes = _mm256_setzero_si256();
    for (int j = 0; j < 4; ++j) {
      const __m256i bit = _mm256_and_si256(_mm256_srli_epi32(lane, j), _mm256_set1_epi32(1));
      bytes = _mm256_or_si256(bytes, _mm256_slli_epi32(bit, 8 * j + 1));
    }
    return bytes;
  };
  const __m256i front = twice(0), back = twice(8), one8 = _mm256_set1_epi8(1), one16 = _mm256_set1_epi16(1);
  const __m256i bytes =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
  for (int64_t i = 0; i < 4 * words; ++i, q += 4, tables += 32) {
    int32_t four;
    std::memcpy(&four, q, 4);
    const __m256i inputs = _mm256_set1_epi32(four);
    const __m256i all = _mm256_madd_epi16(_mm256_maddubs_epi16(one8, inputs), one16);
    const __m256i low = _mm256_madd_epi16(_mm256_maddubs_epi16(front, inputs), one16);
    const __m256i high = _mm256_madd_epi16(_mm256_maddubs_epi16(back, inputs), one16);
    const __m256i sums = _mm256_packs_epi32(_mm256_sub_epi32(low, all), _mm256_sub_epi32(high, all));
    const __m256i in_order = _mm256_shuffle_epi8(_mm256_permute4x64_epi64(sums, 0xD8), bytes);
    _mm256_store_si256(reinterpret_cast<__m256i*>(tables), _mm256_permute4x64_epi64(in_order, 0xD8));
  }
}

inline __m256i table(const char* at) {
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(at)));
}

// sums += what the four bits in each byte of `codes` (the rest 0) stand for.
inline void look_up(const char* tables, __m256i codes, __m256i (&sums)[2]) {
  const __m256i low = _mm256_shuffle_epi8(table(tables), codes), high = _mm256_shuffle_epi8(table(tables + 16), codes);
  sums[0] = _mm256_add_epi16(sums[0], _mm256_unpacklo_epi8(low, high));
  sums[1] = _mm256_add_epi16(sums[1], _mm256_unpackhi_epi8(low, high));
}

// int16 sums of `words` words, at most kBinaryPieceWords, of one plane and 32 outputs.
inline void add_words(const char* tables, const uint8_t* packed, int64_t stride, int64_t words, __m256i (&sums)[2]) {
  const __m256i low_byte = _mm256_set1_epi16(0xff), four_bits = _mm256_set1_epi8(15);
  sums[0] = sums[1] = _mm256_setzero_si256();
  for (int64_t w = 0; w < words; ++w, packed += stride, tables += kBinaryTableBytes) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(packed));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(packed + 32));
    _mm_prefetch(reinterpret_cast<const char*>(packed) + kAheadBytes, _MM_HINT_T0);
    const __m256i lower = _mm256_packus_epi16(_mm256_and_si256(a, low_byte), _mm256_and_si256(b, low_byte));
    const __m256i upper = _mm256_packus_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));
    look_up(tables, _mm256_and_si256(lower, four_bits), sums);
    look_up(tables + 32, _mm256_and_si256(_mm256_srli_epi16(lower, 4), four_bits), sums);
    look_up(tables + 64, _mm256_and_si256(upper, four_bits), sums);
    look_up(tables + 96, _mm256_and_si256(_mm256_srli_epi16(upper, 4), four_bits), sums);
  }
}

inline void plus_scaled(__m256i sums, const uint16_t* scales, float* z) {
  const __m256 alpha = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
  _mm256_storeu_ps(z, _mm256_loadu_ps(z) + alpha * _mm256_cvtepi32_ps(sums));
}

inline __m256i widened(__m256i sums, int half) {
  return _mm256_cvtepi16_epi32(half ? _mm256_extracti128_si256(sums, 1) : _mm256_castsi256_si128(sums));
}

// One plane of one group, 32 outputs.
void add_plane(const char* tables, const uint8_t* packed, int64_t stride, int64_t words, const uint16_t* scales,
               float* z) {
  __m256i sums[2], wide[4];
  add_words(tables, packed, stride, words < kBinaryPieceWords ? words : kBinaryPieceWords, sums);
  for (int i = 0; i < 4; ++i) wide[i] = widened(sums[i / 2], i % 2);
  for (int64_t w = kBinaryPieceWords; w < words; w += kBinaryPieceWords) {
    const int64_t left = words - w;
    add_words(tables + w * kBinaryTableBytes, packed + w * stride, stride,
              left < kBinaryPieceWords ? left : kBinaryPieceWords, sums);
    for (int i = 0; i < 4; ++i) wide[i] = _mm256_add_epi32(wide[i], widened(sums[i / 2], i % 2));
  }
  for (int i = 0; i < 4; ++i) plus_scaled(wide[i], scales + 8 * i, z + 8 * i);
}

void multiply(const BinaryCodedPanel& p) {
  const int64_t stride = p.bits * kBinaryColumns * 2;
  for (int64_t r = 0; r < p.rows; ++r) {
    const char* tables = p.tables + r * p.table_stride;
    const uint8_t* packed = p.packed;
    const uint16_t* scales = p.scales;
    float* z = p.z + r * kBinaryColumns;
    for (int64_t g = 0; g < p.groups; ++g) {
      const int64_t words = g + 1 == p.groups ? p.last_words : p.group_words;
      for (int64_t b = 0; b < p.bits; ++b, scales += kBinaryColumns)
        for (int64_t n = 0; n < kBinaryColumns; n += kTileColumns)
          add_plane(tables, packed + (b * kBinaryColumns + n) * 2, stride, words, scales + n, z + n);
      packed += words * stride;
      tables += words * kBinaryTableBytes;
    }
  }
}

}  // namespace

const BinaryCodedKernels binary_coded_kernels_avx2 = {make_tables, nullptr, multiply, finish};

}  // namespace bigmodel
