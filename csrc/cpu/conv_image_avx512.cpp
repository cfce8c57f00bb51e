#include "conv_loops.h"
#include "quantize_avx512.h"

namespace bigmodel {
namespace {

template <DType dtype>
uint32_t largest_of(const void* x, int64_t count) {
  return pass<dtype, false, true>(x, 0, 0, count, _mm512_setzero_ps(), 0, nullptr);
}

template <DType dtype>
void quantize_run(const void* x, int64_t count, float inverse, uint8_t* q) {
  pass<dtype, true, false>(x, 0, 0, count, _mm512_set1_ps(inverse), 128, q);
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
