// The loops are assembly, so that what is measured is the instructions named here and no compiler's choice. Registers
// hold zeros: no denormals, no overflow.
#include <immintrin.h>

#include "peaks.h"

#define EACH_OF_12(I) I("0") I("1") I("2") I("3") I("4") I("5") I("6") I("7") I("8") I("9") I("10") I("11")
#define CLEAR(r) "vpxor %%ymm" r ", %%ymm" r ", %%ymm" r "\n\t"
#define FMA(r) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" r "\n\t"
#define MULTIPLY_PAIRS(r) "vpmaddwd %%ymm14, %%ymm15, %%ymm12\n\tvpaddd %%ymm12, %%ymm" r ", %%ymm" r "\n\t"
#define LOOP(each, instruction)                                                                                     \
  __asm__ volatile(EACH_OF_12(CLEAR) CLEAR("14")                                                                    \
                       CLEAR("15") ".p2align 5\n1:\n\t" each(instruction) "dec %0\n\tjnz 1b\n\tvzeroupper"          \
                   : "+r"(iterations)                                                                               \
                   :                                                                                                \
                   : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
                     "xmm11", "xmm12", "xmm13", "xmm14", "xmm15")

namespace bigmodel {

int64_t peak_fp32_avx2(int64_t iterations) {
  const int64_t operations = iterations * 12 * 8 * 2;
  LOOP(EACH_OF_12, FMA);
  return operations;
}

int64_t peak_int8_avx2(int64_t iterations) {
  const int64_t operations = iterations * 12 * 16 * 2;
  LOOP(EACH_OF_12, MULTIPLY_PAIRS);
  return operations;
}

uint64_t peak_read_avx2(const void* data, int64_t count) {
  const char* at = static_cast<const char*>(data);
  __m256i sums[8];
  for (int j = 0; j < 8; ++j) sums[j] = _mm256_setzero_si256();
  for (int64_t i = 0; i < count; i += 256) {
    for (int j = 0; j < 4; ++j) _mm_prefetch(at + i + 4096 + 64 * j, _MM_HINT_T0);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      sums[j] = _mm256_xor_si256(sums[j], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + i + 32 * j)));
    }
  }
  for (int j = 1; j < 8; ++j) sums[0] = _mm256_xor_si256(sums[0], sums[j]);
  return static_cast<uint64_t>(_mm256_extract_epi64(sums[0], 0));
}

}  // namespace bigmodel
