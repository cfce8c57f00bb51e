// The vector operations that fused_dropout_vector.h is written in, for AVX-512. Only for *_avx512.cpp files; all in an
// anonymous namespace, so nothing compiled here can be linked into another file. GCC's and Clang's operators (+ - * /)
// work on __m512 directly.
#pragma once

#include <immintrin.h>

#include "../common/philox.h"
#include "../common/view.h"

namespace bigmodel {
namespace {

constexpr int kLanes = 16;
constexpr int kWide = 4;  // vectors that a kernel works on side by side, so that one's latency hides another's
using Floats = __m512;
using Mask = __mmask16;

inline Floats set(float v) { return _mm512_set1_ps(v); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats fnma(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a b
inline Floats fms(Floats a, Floats b, Floats c) { return _mm512_fmsub_ps(a, b, c); }    // a b - c
// Of a bound and a value: NaN in the value stays (the instruction returns its second operand).
inline Floats at_least(float bound, Floats v) { return _mm512_max_ps(set(bound), v); }
inline Floats at_most(float bound, Floats v) { return _mm512_min_ps(set(bound), v); }
inline Floats magnitude(Floats v) { return _mm512_abs_ps(v); }
inline Floats with_sign_of(Floats v, Floats sign) {
  const __m512i bit = _mm512_set1_epi32(static_cast<int>(0x80000000u));
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(bit, _mm512_castps_si512(sign), _mm512_castps_si512(v), 0xCA));
}
inline Floats rounded(Floats v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Floats times_power_of_2(Floats v, Floats n) { return _mm512_scalef_ps(v, n); }
inline Mask below(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
inline Mask not_above(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
inline Floats choose(Mask m, Floats yes, Floats no) { return _mm512_mask_blend_ps(m, no, yes); }
inline Floats add_where(Mask m, Floats v, Floats other) { return _mm512_mask_add_ps(other, m, v, other); }
inline float sum_of(Floats v) { return _mm512_reduce_add_ps(v); }

// Sixteen values, looked up by the low four bits of each lane.
inline Floats look_up(const float (&table)[16], __m512i index) {
  return _mm512_permutexvar_ps(index, _mm512_load_ps(table));
}

template <DType D>
Floats load(const void* base, int64_t i) {
  if (D == DType::f32) return _mm512_loadu_ps(static_cast<const float*>(base) + i);
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(base) + i));
  if (D == DType::f16) return _mm512_cvtph_ps(h);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

// Rounded to bfloat16, in the upper half of each lane.
inline __m512i to_bf16(Floats v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i even = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const Mask nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_mask_or_epi32(even, nan, bits, _mm512_set1_epi32(0x400000));
}

template <DType D>
__m512i to_half(Floats low, Floats high) {
  if (D == DType::bf16) {
    const __m512i odd_halves = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29,
                                                27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    return _mm512_permutex2var_epi16(to_bf16(low), odd_halves, to_bf16(high));
  }
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtps_ph(low, kNearest)), _mm512_cvtps_ph(high, kNearest), 1);
}

// One vector.
template <DType D>
void store(void* base, int64_t i, Floats v) {
  if (D == DType::f32) return _mm512_storeu_ps(static_cast<float*>(base) + i, v);
  const __m256i h = _mm512_castsi512_si256(to_half<D>(v, v));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(static_cast<uint16_t*>(base) + i), h);
}

// kWide vectors, in whole cache lines.
template <DType D>
void store_wide(void* base, const Floats (&v)[kWide], bool stream) {
  __m512i bits[kWide];
  constexpr int kLines = D == DType::f32 ? kWide : kWide / 2;
#pragma GCC unroll 4
  for (int j = 0; j < kLines; ++j)
    bits[j] = D == DType::f32 ? _mm512_castps_si512(v[j]) : to_half<D>(v[2 * j], v[2 * j + 1]);
  auto* p = static_cast<__m512i*>(base);
  if (stream) {
#pragma GCC unroll 4
    for (int j = 0; j < kLines; ++j) _mm512_stream_si512(p + j, bits[j]);
  } else {
#pragma GCC unroll 4
    for (int j = 0; j < kLines; ++j) _mm512_storeu_si512(p + j, bits[j]);
  }
}

// Which of 64 elements are kept: bit i for element i.
struct Keep {
  uint64_t bits;
  Mask vector(int v) const { return static_cast<Mask>(bits >> (v * kLanes)); }
};

inline Keep keep_all() { return {~uint64_t{0}}; }

// Eight Philox blocks side by side: one 32-bit word to a 64-bit lane, whose upper half is never looked at, since
// vpmuludq reads the lower halves only.
class DropoutMask {
 public:
  DropoutMask(uint64_t seed, uint32_t threshold) : threshold_(_mm512_set1_epi16(static_cast<short>(threshold))) {
    for (uint32_t r = 0; r < kPhiloxRounds; ++r) {
      key0_[r] = _mm512_set1_epi64(static_cast<uint32_t>(seed) + r * kPhiloxWeyl0);
      key1_[r] = _mm512_set1_epi64(static_cast<uint32_t>(seed >> 32) + r * kPhiloxWeyl1);
    }
  }

  // The masks of N chunks from this Philox block on. A chain of rounds is all latency: four side by side take two
  // thirds of the time.
  template <int N>
  void at(uint64_t block, Keep* keep) const {
    const __m512i m0 = _mm512_set1_epi64(kPhiloxMultiplier0), m1 = _mm512_set1_epi64(kPhiloxMultiplier1);
    __m512i c0[N], c1[N], c2[N], c3[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      // In this order the unpacks below leave the blocks in sequence.
      const __m512i counter = _mm512_add_epi64(_mm512_set1_epi64(static_cast<int64_t>(block + 8 * j)),
                                               _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7));
      // Words 2 and 3 of the counter are 0, which leaves this of the first round:
      c3[j] = _mm512_mul_epu32(counter, m0);
      c1[j] = _mm512_setzero_si512();
      c0[j] = _mm512_xor_si512(high_word(counter), key0_[0]);
      c2[j] = _mm512_xor_si512(high_word(c3[j]), key1_[0]);
    }
#pragma GCC unroll 9
    for (int r = 1; r < kPhiloxRounds; ++r) {
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) {
        const __m512i p0 = _mm512_mul_epu32(c0[j], m0), p1 = _mm512_mul_epu32(c2[j], m1);
        c0[j] = _mm512_ternarylogic_epi64(high_word(p1), c1[j], key0_[r], 0x96);
        c2[j] = _mm512_ternarylogic_epi64(high_word(p0), c3[j], key1_[r], 0x96);
        c1[j] = p1;
        c3[j] = p0;
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      const __m512i front = _mm512_mask_shuffle_epi32(c0[j], 0xAAAA, c1[j], static_cast<_MM_PERM_ENUM>(0xA0));
      const __m512i back = _mm512_mask_shuffle_epi32(c2[j], 0xAAAA, c3[j], static_cast<_MM_PERM_ENUM>(0xA0));
      const uint64_t low = _mm512_cmpge_epu16_mask(_mm512_unpacklo_epi64(front, back), threshold_);
      const uint64_t high = _mm512_cmpge_epu16_mask(_mm512_unpackhi_epi64(front, back), threshold_);
      keep[j] = {low | high << 32};
    }
  }

 private:
  // A shuffle may run on any vector port, a shift on half of them.
  static __m512i high_word(__m512i v) { return _mm512_shuffle_epi32(v, static_cast<_MM_PERM_ENUM>(0xF5)); }

  __m512i key0_[kPhiloxRounds], key1_[kPhiloxRounds], threshold_;
};

}  // namespace
}  // namespace bigmodel
