#include <immintrin.h>

#include "pack_panel_csr.h"

namespace bigmodel {
namespace {

constexpr __mmask16 kAll = 0xffff;  // the processor prefetches for plain loads only

// 16 weights, in 32-bit lanes.
struct Wide {
  static __m512i load(const void* weight, int64_t k, __mmask16 lanes) {
    const uint32_t* from = static_cast<const uint32_t*>(weight) + k;
    return lanes == kAll ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi32(lanes, from);
  }
  static void store(void* values, int64_t i, __m512i v) { _mm512_storeu_si512(static_cast<uint32_t*>(values) + i, v); }
};

struct Half {
  static __m512i load(const void* weight, int64_t k, __mmask16 lanes) {
    const uint16_t* from = static_cast<const uint16_t*>(weight) + k;
    if (lanes == kAll) return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, from));
  }
  static void store(void* values, int64_t i, __m512i v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(static_cast<uint16_t*>(values) + i), _mm512_cvtepi32_epi16(v));
  }
};

__mmask16 stored_by(const uint8_t* mask, int64_t k, __mmask16 lanes) {
  const __m128i kept = _mm_maskz_loadu_epi8(lanes, mask + k);
  return _mm_test_epi8_mask(kept, kept);
}

__mmask16 lanes_from(int64_t k, int64_t columns) {
  return static_cast<__mmask16>(columns - k >= 16 ? kAll : (1 << (columns - k)) - 1);
}

template <typename W>
int64_t count_stored(const void* weight, uint32_t tested, const uint8_t* mask, int64_t columns) {
  const __m512i bits = _mm512_set1_epi32(static_cast<int>(tested));
  int64_t found = 0;
  for (int64_t k = 0; k < columns; k += 16) {
    const __mmask16 lanes = lanes_from(k, columns);
    const __mmask16 stored = mask ? stored_by(mask, k, lanes) : _mm512_test_epi32_mask(W::load(weight, k, lanes), bits);
    found += __builtin_popcount(stored);
  }
  return found;
}

template <typename W>
int64_t fill_stored(const void* weight, uint32_t tested, const uint8_t* mask, int64_t columns, void* values,
                    uint8_t* col) {
  const __m512i bits = _mm512_set1_epi32(static_cast<int>(tested));
  __m512i at = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  int64_t found = 0;
  for (int64_t k = 0; k < columns; k += 16) {
    const __mmask16 lanes = lanes_from(k, columns);
    const __m512i w = W::load(weight, k, lanes);
    const __mmask16 stored = mask ? stored_by(mask, k, lanes) : _mm512_test_epi32_mask(w, bits);
    W::store(values, found, _mm512_maskz_compress_epi32(stored, w));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(col + found),
                     _mm512_cvtepi32_epi8(_mm512_maskz_compress_epi32(stored, at)));
    at = _mm512_add_epi32(at, _mm512_set1_epi32(16));
    found += __builtin_popcount(stored);
  }
  return found;
}

int64_t count(const void* weight, DType dtype, const uint8_t* mask, int64_t columns) {
  if (dtype == DType::f32) return count_stored<Wide>(weight, 0x7fffffff, mask, columns);
  if (dtype == DType::i32) return count_stored<Wide>(weight, 0xffffffff, mask, columns);
  return count_stored<Half>(weight, 0x7fff, mask, columns);
}

int64_t fill(const void* weight, DType dtype, const uint8_t* mask, int64_t columns, void* values, uint8_t* col) {
  if (dtype == DType::f32) return fill_stored<Wide>(weight, 0x7fffffff, mask, columns, values, col);
  if (dtype == DType::i32) return fill_stored<Wide>(weight, 0xffffffff, mask, columns, values, col);
  return fill_stored<Half>(weight, 0x7fff, mask, columns, values, col);
}

}  // namespace

const PackKernels pack_kernels_avx512 = {count, fill};

}  // namespace bigmodel
