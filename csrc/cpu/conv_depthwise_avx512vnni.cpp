// 64 channels and four taps at a time: the bytes of four taps are interleaved, so that each 32-bit lane holds what one
// vpdpbusd adds to a channel's sum.
#include <immintrin.h>

#include "conv_image.h"

namespace bigmodel {
namespace {

inline __mmask16 first_lanes(int64_t count) {
  return count >= 16 ? __mmask16{0xffff} : count <= 0 ? __mmask16{0} : static_cast<__mmask16>((1u << count) - 1u);
}

// Lane block b of v[j] is block j of v[b] afterwards, in 128-bit blocks.
__attribute__((always_inline)) inline void transpose_blocks(__m512i* v) {
  const __m512i a = _mm512_shuffle_i32x4(v[0], v[1], 0x44), b = _mm512_shuffle_i32x4(v[0], v[1], 0xee);
  const __m512i c = _mm512_shuffle_i32x4(v[2], v[3], 0x44), d = _mm512_shuffle_i32x4(v[2], v[3], 0xee);
  v[0] = _mm512_shuffle_i32x4(a, c, 0x88);
  v[1] = _mm512_shuffle_i32x4(a, c, 0xdd);
  v[2] = _mm512_shuffle_i32x4(b, d, 0x88);
  v[3] = _mm512_shuffle_i32x4(b, d, 0xdd);
}

}  // namespace

void conv_depthwise_avx512vnni(const ConvDepthwise& d) {
  const __m512 x_scale = _mm512_set1_ps(d.x_scale);
  const int64_t tap_groups = (d.taps + 3) / 4, blocks = (d.channels + 63) / 64;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t c = block * 64, left = d.channels - c;
    __m512i compensation[4];
    __m512 weight_scale[4], bias[4];
    __mmask16 mask[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      mask[v] = first_lanes(left - v * 16);
      compensation[v] = _mm512_loadu_si512(d.compensation + c + v * 16);
      weight_scale[v] = _mm512_maskz_loadu_ps(mask[v], d.weight_scale + c + v * 16);
      bias[v] =
          d.bias ? _mm512_maskz_loadu_ps(mask[v], d.bias + c + v * 16) : _mm512_set1_ps(-0.0f);  // changes nothing
    }
    for (int64_t p = 0; p < d.pixels; ++p) {
      const uint8_t* from = d.from + p * d.pixel_step + c;
      const int8_t* weight = d.weight + block * 256;
      __m512i sum[4];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) sum[v] = _mm512_setzero_si512();
      for (int64_t t = 0; t < tap_groups; ++t, weight += blocks * 256) {
        const int64_t* offset = d.offset + 4 * t;
        const __m512i q0 = _mm512_loadu_si512(from + offset[0]), q1 = _mm512_loadu_si512(from + offset[1]);
        const __m512i q2 = _mm512_loadu_si512(from + offset[2]), q3 = _mm512_loadu_si512(from + offset[3]);
        const __m512i low01 = _mm512_unpacklo_epi8(q0, q1), high01 = _mm512_unpackhi_epi8(q0, q1);
        const __m512i low23 = _mm512_unpacklo_epi8(q2, q3), high23 = _mm512_unpackhi_epi8(q2, q3);
        sum[0] = _mm512_dpbusd_epi32(sum[0], _mm512_unpacklo_epi16(low01, low23), _mm512_loadu_si512(weight));
        sum[1] = _mm512_dpbusd_epi32(sum[1], _mm512_unpackhi_epi16(low01, low23), _mm512_loadu_si512(weight + 64));
        sum[2] = _mm512_dpbusd_epi32(sum[2], _mm512_unpacklo_epi16(high01, high23), _mm512_loadu_si512(weight + 128));
        sum[3] = _mm512_dpbusd_epi32(sum[3], _mm512_unpackhi_epi16(high01, high23), _mm512_loadu_si512(weight + 192));
      }
      transpose_blocks(sum);
      float* out = d.out + p * d.out_stride + c;
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const __m512 acc = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum[v], compensation[v]));
        const __m512 y = _mm512_add_ps(_mm512_mul_ps(_mm512_mul_ps(acc, x_scale), weight_scale[v]), bias[v]);
        _mm512_mask_storeu_ps(out + v * 16, mask[v], y);
      }
    }
  }
}

}  // namespace bigmodel
