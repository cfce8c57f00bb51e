#include <immintrin.h>

#include <cstring>

#include "int8_panel.h"
#include "simd_avx2.h"

namespace bigmodel {
namespace {

constexpr int kMostVectors = 8;  // of 8 outputs: 64 columns
constexpr int kTileVectors = 2;  // 12 sums, 2 weights, an activation and a product fill the 16 registers
constexpr int32_t kLowOffset = 0;
using Ints = __m256i;

inline Ints set(int32_t v) { return _mm256_set1_epi32(v); }
inline Ints ones() { return _mm256_set1_epi16(1); }
inline Ints load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline Ints broadcast(const uint32_t* p) { return _mm256_set1_epi32(static_cast<int>(*p)); }
inline Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline Ints subtract(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
inline Ints low_bytes(Ints v) { return _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8); }
inline Ints high_bytes(Ints v) { return _mm256_srai_epi16(v, 8); }
inline Ints unsigned_low_bytes(Ints v) { return _mm256_and_si256(v, _mm256_set1_epi16(0xff)); }
inline Ints unsigned_high_bytes(Ints v) { return _mm256_srli_epi16(v, 8); }
inline int32_t sum_of(Ints v) {
  alignas(32) int32_t lanes[kLanes];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), v);
  int32_t sum = 0;
  for (int32_t lane : lanes) sum += lane;
  return sum;
}
inline Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }
inline Floats to_floats(Ints v) { return _mm256_cvtepi32_ps(v); }
inline Floats times(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats plus(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline void store(char* p, Ints v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
inline void store(char* p, Floats v) { _mm256_storeu_ps(reinterpret_cast<float*>(p), v); }
// sum + a * b, in assembly: GCC would take a register too many, or do every product before the additions and spill.
inline Ints multiply_add(Ints sum, Ints a, Ints b) {
  Ints product;
  __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+v"(sum), "=&v"(product) : "v"(a), "v"(b));
  return sum;
}

template <DType dtype>
void narrow(const float* y, uint16_t* half) {
  for (int64_t n = 0; n < kPanelColumns; n += kLanes)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(half + n), to_half<dtype>(_mm256_load_ps(y + n)));
}

// A tile's results, float32 or int32 [rows, 64], to an output of another dtype or of fewer columns.
void store_rows(const Int8Panel& p, int64_t row, int64_t rows, const float* y) {
  const bool wide = p.out_dtype == DType::f32 || p.out_dtype == DType::i32;
  const size_t bytes = static_cast<size_t>(p.columns) * (wide ? 4 : 2);
  char* to = static_cast<char*>(p.out) + row * p.out_stride * (wide ? 4 : 2);
  for (int64_t r = 0; r < rows; ++r, y += kPanelColumns, to += p.out_stride * (wide ? 4 : 2)) {
    alignas(32) uint16_t half[kPanelColumns];
    if (!wide) p.out_dtype == DType::f16 ? narrow<DType::f16>(y, half) : narrow<DType::bf16>(y, half);
    std::memcpy(to, wide ? static_cast<const void*>(y) : half, bytes);
  }
}

}  // namespace
}  // namespace bigmodel

#include "int8_panel_pairs.h"

namespace bigmodel {

void int8_panel_avx2(const Int8Panel& p) { run_panel(p); }

}  // namespace bigmodel
