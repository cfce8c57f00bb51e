// The vector operations that fused_dropout_vector.h is written in, for AVX2, FMA and F16C: the twin of simd_avx512.h.
// Only for *_avx2.cpp files.
#pragma once

#include <immintrin.h>

#include "../common/philox.h"
#include "../common/view.h"

namespace bigmodel {
namespace {

constexpr int kLanes = 8;
constexpr int kWide = 2;  // vectors that a kernel works on side by side, so that one's latency hides another's
using Floats = __m256;
using Mask = __m256;

inline Floats set(float v) { return _mm256_set1_ps(v); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats fnma(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a b
inline Floats fms(Floats a, Floats b, Floats c) { return _mm256_fmsub_ps(a, b, c); }    // a b - c
// Of a bound and a value: NaN in the value stays (the instruction returns its second operand).
inline Floats at_least(float bound, Floats v) { return _mm256_max_ps(set(bound), v); }
inline Floats at_most(float bound, Floats v) { return _mm256_min_ps(set(bound), v); }
inline Floats magnitude(Floats v) { return _mm256_andnot_ps(set(-0.0f), v); }
inline Floats with_sign_of(Floats v, Floats sign) {
  return _mm256_or_ps(magnitude(v), _mm256_and_ps(set(-0.0f), sign));
}
inline Floats rounded(Floats v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// In two steps, so that subnormal results come out right; |n| < 252.
inline Floats times_power_of_2(Floats v, Floats n) {
  const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1), one = _mm256_set1_epi32(127);
  const __m256i a = _mm256_slli_epi32(_mm256_add_epi32(half, one), 23);
  const __m256i b = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), one), 23);
  return v * _mm256_castsi256_ps(a) * _mm256_castsi256_ps(b);
}
inline Mask below(Floats a, Floats b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
inline Mask not_above(Floats a, Floats b) { return _mm256_cmp_ps(a, b, _CMP_LE_OQ); }
inline Floats choose(Mask m, Floats yes, Floats no) { return _mm256_blendv_ps(no, yes, m); }
inline Floats add_where(Mask m, Floats v, Floats other) { return choose(m, v + other, other); }
inline float sum_of(Floats v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

template <DType D>
Floats load(const void* base, int64_t i) {
  if (D == DType::f32) return _mm256_loadu_ps(static_cast<const float*>(base) + i);
  const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(base) + i));
  if (D == DType::f16) return _mm256_cvtph_ps(h);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

inline __m128i to_bf16(Floats v) {
  const __m256i bits = _mm256_castps_si256(v), high = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i even = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
  const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i r = _mm256_blendv_epi8(even, quiet, nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}

template <DType D>
__m128i to_half(Floats v) {
  return D == DType::f16 ? _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC) : to_bf16(v);
}

// One vector.
template <DType D>
void store(void* base, int64_t i, Floats v) {
  if (D == DType::f32) return _mm256_storeu_ps(static_cast<float*>(base) + i, v);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(static_cast<uint16_t*>(base) + i), to_half<D>(v));
}

template <DType D>
void store_wide(void* base, const Floats (&v)[kWide], bool stream) {
#pragma GCC unroll 2
  for (int j = 0; j < kWide; ++j) {
    if (D == DType::f32) {
      float* p = static_cast<float*>(base) + j * kLanes;
      stream ? _mm256_stream_ps(p, v[j]) : _mm256_storeu_ps(p, v[j]);
    } else {
      auto* p = static_cast<__m128i*>(base) + j;
      const __m128i h = to_half<D>(v[j]);
      stream ? _mm_stream_si128(p, h) : _mm_storeu_si128(p, h);
    }
  }
}

// Which of 64 elements are kept: all ones or zero for each, 16 bits wide.
struct Keep {
  __m256i halves[4];
  Mask vector(int v) const {
    const __m256i h = halves[v / 2];
    const __m128i eight = v % 2 ? _mm256_extracti128_si256(h, 1) : _mm256_castsi256_si128(h);
    return _mm256_castsi256_ps(_mm256_cvtepi16_epi32(eight));
  }
};

inline Keep keep_all() {
  const __m256i ones = _mm256_set1_epi32(-1);
  return {{ones, ones, ones, ones}};
}

// Philox blocks side by side: one 32-bit word to a 64-bit lane, whose upper half is never looked at, since
// vpmuludq reads the lower halves only.
class DropoutMask {
 public:
  DropoutMask(uint64_t seed, uint32_t threshold) : threshold_(_mm256_set1_epi16(static_cast<short>(threshold))) {
    for (uint32_t r = 0; r < kPhiloxRounds; ++r) {
      key0_[r] = _mm256_set1_epi64x(static_cast<uint32_t>(seed) + r * kPhiloxWeyl0);
      key1_[r] = _mm256_set1_epi64x(static_cast<uint32_t>(seed >> 32) + r * kPhiloxWeyl1);
    }
  }

  // The masks of N chunks from this Philox block on.
  template <int N>
  void at(uint64_t block, Keep* keep) const {
    for (int j = 0; j < N; ++j) eight_blocks(block + static_cast<uint64_t>(j) * 8, keep[j].halves);
  }

 private:
  // A shuffle may run on more ports than a shift.
  static __m256i high_word(__m256i v) { return _mm256_shuffle_epi32(v, 0xF5); }

  // Two chains of rounds side by side: a chain alone is all latency.
  void eight_blocks(uint64_t block, __m256i* keep) const {
    const __m256i m0 = _mm256_set1_epi64x(kPhiloxMultiplier0), m1 = _mm256_set1_epi64x(kPhiloxMultiplier1);
    __m256i c0[2], c1[2], c2[2], c3[2];
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      // In this order the unpacks below leave the blocks in sequence.
      const __m256i counter =
          _mm256_add_epi64(_mm256_set1_epi64x(static_cast<int64_t>(block + 4 * j)), _mm256_setr_epi64x(0, 2, 1, 3));
      // Words 2 and 3 of the counter are 0, which leaves this of the first round:
      c3[j] = _mm256_mul_epu32(counter, m0);
      c1[j] = _mm256_setzero_si256();
      c0[j] = _mm256_xor_si256(high_word(counter), key0_[0]);
      c2[j] = _mm256_xor_si256(high_word(c3[j]), key1_[0]);
    }
#pragma GCC unroll 9
    for (int r = 1; r < kPhiloxRounds; ++r) {
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        const __m256i p0 = _mm256_mul_epu32(c0[j], m0), p1 = _mm256_mul_epu32(c2[j], m1);
        c0[j] = _mm256_xor_si256(_mm256_xor_si256(high_word(p1), c1[j]), key0_[r]);
        c2[j] = _mm256_xor_si256(_mm256_xor_si256(high_word(p0), c3[j]), key1_[r]);
        c1[j] = p1;
        c3[j] = p0;
      }
    }
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const __m256i front = _mm256_blend_epi32(c0[j], _mm256_slli_epi64(c1[j], 32), 0xAA);
      const __m256i back = _mm256_blend_epi32(c2[j], _mm256_slli_epi64(c3[j], 32), 0xAA);
      const __m256i low = _mm256_unpacklo_epi64(front, back), high = _mm256_unpackhi_epi64(front, back);
      keep[2 * j] = _mm256_cmpeq_epi16(_mm256_max_epu16(low, threshold_), low);
      keep[2 * j + 1] = _mm256_cmpeq_epi16(_mm256_max_epu16(high, threshold_), high);
    }
  }

  __m256i key0_[kPhiloxRounds], key1_[kPhiloxRounds], threshold_;
};

}  // namespace
}  // namespace bigmodel
