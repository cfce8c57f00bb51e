// See peaks_avx2.cpp.
#include "peaks_avx512.h"

#include <immintrin.h>

#include "peaks.h"

#define FMA(r) "vfmadd231ps %%zmm30, %%zmm31, %%zmm" r "\n\t"
#define MULTIPLY_PAIRS(r) "vpmaddwd %%zmm30, %%zmm31, %%zmm29\n\tvpaddd %%zmm29, %%zmm" r ", %%zmm" r "\n\t"

namespace bigmodel {

int64_t peak_fp32_avx512(int64_t iterations) {
  const int64_t operations = iterations * 24 * 16 * 2;
  BIGMODEL_PEAK_LOOP(FMA);
  return operations;
}

int64_t peak_int8_avx512(int64_t iterations) {
  const int64_t operations = iterations * 24 * 32 * 2;
  BIGMODEL_PEAK_LOOP(MULTIPLY_PAIRS);
  return operations;
}

uint64_t peak_read_avx512(const void* data, int64_t count) {
  const char* at = static_cast<const char*>(data);
  __m512i sums[8];
  for (int j = 0; j < 8; ++j) sums[j] = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += 512) {
    for (int j = 0; j < 8; ++j) _mm_prefetch(at + i + 4096 + 64 * j, _MM_HINT_T0);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) sums[j] = _mm512_xor_si512(sums[j], _mm512_loadu_si512(at + i + 64 * j));
  }
  for (int j = 1; j < 8; ++j) sums[0] = _mm512_xor_si512(sums[0], sums[j]);
  return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm512_castsi512_si128(sums[0])));
}

}  // namespace bigmodel
