#include <immintrin.h>

#include "conv_loops.h"

namespace bigmodel {
namespace {

inline __mmask16 first_lanes(int64_t count) {
  return count >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1u << count) - 1u);
}

// x[i : i + 16] as float32, 0 where the mask is off.
template <DType dtype>
inline __m512 load16(const void* x, int64_t i, __mmask16 mask) {
  if (dtype == DType::f32) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(x) + i);
  const __m256i h = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(x) + i);
  if (dtype == DType::f16) return _mm512_cvtph_ps(h);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

template <DType dtype>
uint32_t largest_of(const void* x, int64_t count) {
  const __m512i no_sign = _mm512_set1_epi32(0x7fffffff);
  __m512i best[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) best[j] = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += 64) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const int64_t left = count - i - j * 16;
      const __m512 v = load16<dtype>(x, i + j * 16, left > 0 ? first_lanes(left) : __mmask16{0});
      best[j] = _mm512_max_epu32(best[j], _mm512_and_si512(_mm512_castps_si512(v), no_sign));
    }
  }
  best[0] = _mm512_max_epu32(_mm512_max_epu32(best[0], best[1]), _mm512_max_epu32(best[2], best[3]));
  return _mm512_reduce_max_epu32(best[0]);
}

template <DType dtype>
inline __m512i rounded(const void* x, int64_t i, __mmask16 mask, __m512 inverse) {
  return _mm512_cvtps_epi32(_mm512_mul_ps(load16<dtype>(x, i, mask), inverse));  // half to even
}

template <DType dtype>
void quantize_run(const void* x, int64_t count, float inverse, uint8_t* q) {
  const __m512 factor = _mm512_set1_ps(inverse);
  const __m512i zero = _mm512_set1_epi8(static_cast<char>(0x80));
  // Packing to 16 and then 8 bits works within 128-bit quarters; this puts the 4-byte pieces in order again.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) {
    __m512i v[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) v[j] = rounded<dtype>(x, i + j * 16, 0xffff, factor);
    const __m512i packed = _mm512_packs_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]));
    _mm512_storeu_si512(q + i, _mm512_add_epi8(_mm512_permutexvar_epi32(order, packed), zero));
  }
  for (; i < count; i += 16) {
    const __mmask16 mask = first_lanes(count - i);
    const __m128i bytes = _mm512_cvtepi32_epi8(rounded<dtype>(x, i, mask, factor));
    _mm_mask_storeu_epi8(q + i, mask, _mm_add_epi8(bytes, _mm512_castsi512_si128(zero)));
  }
}

// Four channels of 16 pixels, a byte each, in 32-bit lanes: sum of (q[j] + 128) * 256^j = sum of q[j] * 256^j +
// 0x80808080.
template <DType dtype>
inline __m512i four_channels(const void* x, int64_t plane, int64_t channels, __mmask16 pixels, __m512 factor) {
  __m512i sum = _mm512_set1_epi32(static_cast<int>(0x80808080u));
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    if (j < channels) {
      const __m512i q = rounded<dtype>(x, j * plane, pixels, factor);
      sum = _mm512_add_epi32(sum, _mm512_slli_epi32(q, 8 * j));
    }
  }
  return sum;
}

// 16 channels of 16 pixels: lane p of v[g] holds channels 4g to 4g + 3 of pixel p; pixel p's 16 bytes go to q + p *
// stride.
inline void store_pixels(const __m512i* v, int64_t pixels, __mmask16 channels, int64_t stride, uint8_t* q) {
  const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
  const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  alignas(64) uint8_t by_pixel[4][64];  // [p % 4][p / 4][16]
  const __m512i t[4] = {_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c), _mm512_unpacklo_epi64(b, d),
                        _mm512_unpackhi_epi64(b, d)};
  if (pixels == 16 && channels == 0xffff) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      uint8_t* to = q + i * stride;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_castsi512_si128(t[i]));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 4 * stride), _mm512_extracti32x4_epi32(t[i], 1));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 8 * stride), _mm512_extracti32x4_epi32(t[i], 2));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 12 * stride), _mm512_extracti32x4_epi32(t[i], 3));
    }
    return;
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) _mm512_store_si512(by_pixel[i], t[i]);
  for (int64_t p = 0; p < pixels; ++p) {
    const __m128i bytes = _mm_load_si128(reinterpret_cast<const __m128i*>(by_pixel[p % 4] + p / 4 * 16));
    _mm_mask_storeu_epi8(q + p * stride, channels, bytes);
  }
}

template <DType dtype>
void quantize_planes_of(const void* x, int64_t plane, int64_t channels, int64_t pixels, float inverse, uint8_t* q) {
  constexpr int64_t kBytes = dtype == DType::f32 ? 4 : 2;
  const __m512 factor = _mm512_set1_ps(inverse);
  for (int64_t c = 0; c < channels; c += 16) {  // outside, so that few planes are read at a time
    for (int64_t p = 0; p < pixels; p += 16) {
      const __mmask16 mask = first_lanes(pixels - p);
      __m512i v[4];
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) {
        const char* from = static_cast<const char*>(x) + ((c + 4 * g) * plane + p) * kBytes;
        v[g] = four_channels<dtype>(from, plane, channels - c - 4 * g, mask, factor);
      }
      store_pixels(v, pixels - p < 16 ? pixels - p : 16, first_lanes(channels - c), channels, q + p * channels + c);
    }
  }
}

uint32_t largest(const void* x, DType dtype, int64_t count) {
  if (dtype == DType::f32) return largest_of<DType::f32>(x, count);
  return dtype == DType::bf16 ? largest_of<DType::bf16>(x, count) : largest_of<DType::f16>(x, count);
}

void quantize(const void* x, DType dtype, int64_t count, float inverse, uint8_t* q) {
  if (dtype == DType::f32) return quantize_run<DType::f32>(x, count, inverse, q);
  if (dtype == DType::bf16) return quantize_run<DType::bf16>(x, count, inverse, q);
  quantize_run<DType::f16>(x, count, inverse, q);
}

void quantize_planes(const void* x, DType dtype, int64_t plane, int64_t channels, int64_t pixels, float inverse,
                     uint8_t* q) {
  if (dtype == DType::f32) return quantize_planes_of<DType::f32>(x, plane, channels, pixels, inverse, q);
  if (dtype == DType::bf16) return quantize_planes_of<DType::bf16>(x, plane, channels, pixels, inverse, q);
  quantize_planes_of<DType::f16>(x, plane, channels, pixels, inverse, q);
}

// Whole vectors only: what a segment writes too much is overwritten by the next one, or lies in the slack.
void rows(const ConvRows& r) {
  for_each_segment(r, [&](const uint8_t* from, uint8_t* to) {
    for (int64_t i = 0; i < r.segment_bytes; i += 64) _mm512_storeu_si512(to + i, _mm512_loadu_si512(from + i));
  });
}

// Round to nearest even; NaN stays NaN, as float_to_bf16 in half.h.
inline __m256i to_bf16(__m512 y) {
  const __m512i bits = _mm512_castps_si512(y);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(y, y, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

inline void store16(void* out, DType dtype, int64_t at, __mmask16 mask, __m512 y) {
  if (dtype == DType::f32) {
    _mm512_mask_storeu_ps(static_cast<float*>(out) + at, mask, y);
    return;
  }
  const __m256i half =
      dtype == DType::bf16 ? to_bf16(y) : _mm512_cvtps_ph(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm256_mask_storeu_epi16(static_cast<uint16_t*>(out) + at, mask, half);
}

// v[i][j] <-> v[j][i], in registers: hence unrolled, and in the caller.
__attribute__((always_inline)) inline void transpose(__m512* v) {
  __m512 t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + j + 2]);
      v[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      v[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 a = _mm512_shuffle_f32x4(v[j], v[j + 4], 0x88), b = _mm512_shuffle_f32x4(v[j], v[j + 4], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(v[j + 8], v[j + 12], 0x88),
                 d = _mm512_shuffle_f32x4(v[j + 8], v[j + 12], 0xdd);
    t[j] = _mm512_shuffle_f32x4(a, c, 0x88);
    t[j + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
    t[j + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
    t[j + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) v[i] = t[i];
}

// 16 planes at a time, so that there are no more streams of stores than the processor follows.
void store_planes(const float* sums, int64_t pixels, int64_t columns, void* out, DType dtype, int64_t plane) {
  for (int64_t n = 0; n < columns; n += 16) {
    for (int64_t p = 0; p < pixels; p += 16) {
      const __mmask16 mask = first_lanes(pixels - p);
      __m512 v[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i)
        v[i] = _mm512_maskz_loadu_ps(p + i < pixels ? __mmask16{0xffff} : __mmask16{0}, sums + (p + i) * 64 + n);
      transpose(v);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i)
        if (n + i < columns) store16(out, dtype, (n + i) * plane + p, mask, v[i]);
    }
  }
}

}  // namespace

const ConvImageKernels conv_image_avx512 = {largest, quantize, quantize_planes, rows, depthwise, store_planes};

}  // namespace bigmodel
