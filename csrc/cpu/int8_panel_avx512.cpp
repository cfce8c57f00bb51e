#include "int8_panel_avx512.h"

#include <immintrin.h>

#include "int8_panel.h"

namespace bigmodel {
namespace {

constexpr int kLanes = 16;           // outputs of a vector
constexpr int kMostVectors = 4;      // 64 columns
constexpr int kTileVectors = 4;      // 24 sums, 4 weights, an activation and a product of 32 registers
constexpr int32_t kLowOffset = 128;  // one operation instead of two shifts
using Ints = __m512i;
using Floats = __m512;

inline Ints set(int32_t v) { return _mm512_set1_epi32(v); }
inline Ints ones() { return _mm512_set1_epi16(1); }
inline Ints load(const void* p) { return _mm512_loadu_si512(p); }
inline Ints broadcast(const uint32_t* p) { return _mm512_set1_epi32(static_cast<int>(*p)); }
inline Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints subtract(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
inline Ints low_bytes(Ints v) {  // (v ^ 0x80) & 0xff
  return _mm512_ternarylogic_epi32(v, _mm512_set1_epi16(0x80), _mm512_set1_epi16(0xff), 0x28);
}
inline Ints high_bytes(Ints v) { return _mm512_srai_epi16(v, 8); }
inline Ints unsigned_low_bytes(Ints v) { return _mm512_and_si512(v, _mm512_set1_epi16(0xff)); }
inline Ints unsigned_high_bytes(Ints v) { return _mm512_srli_epi16(v, 8); }
inline int32_t sum_of(Ints v) { return _mm512_reduce_add_epi32(v); }
inline Floats set(float v) { return _mm512_set1_ps(v); }
inline Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
inline Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }
inline Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats plus(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline void store(char* p, Ints v) { _mm512_storeu_si512(p, v); }
inline void store(char* p, Floats v) { _mm512_storeu_ps(p, v); }

// sum + a * b, in assembly: GCC would do every product before the additions and spill.
inline Ints multiply_add(Ints sum, Ints a, Ints b) {
  Ints product;
  __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+v"(sum), "=&v"(product) : "v"(a), "v"(b));
  return sum;
}

}  // namespace
}  // namespace bigmodel

#include "int8_panel_pairs.h"

namespace bigmodel {

void int8_panel_avx512(const Int8Panel& p) { run_panel(p); }

}  // namespace bigmodel
