#include "conv_loops.h"
#include "quantize_avx2.h"

namespace bigmodel {
namespace {

template <DType dtype>
inline __m256i rounded(const void* x, int64_t i, __m256 inverse) {
  return _mm256_cvtps_epi32(_mm256_mul_ps(load8<dtype>(x, i), inverse));  // half to even
}

template <DType dtype>
void quantize_run(const void* x, int64_t count, float inverse, uint8_t* q) {
  const __m256 factor = _mm256_set1_ps(inverse);
  // Packing to 16 and then 8 bits works within 128-bit halves; this puts the 4-byte pieces in order again.
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    const __m256i low = _mm256_packs_epi32(rounded<dtype>(x, i, factor), rounded<dtype>(x, i + 8, factor));
    const __m256i high = _mm256_packs_epi32(rounded<dtype>(x, i + 16, factor), rounded<dtype>(x, i + 24, factor));
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + i),
                        _mm256_xor_si256(bytes, _mm256_set1_epi8(static_cast<char>(0x80))));
  }
  for (; i < count; ++i) q[i] = quantized(load_float(x, dtype, i), inverse);
}

// Four channels of eight pixels at a time, a byte each, in 32-bit lanes:
// sum of (q[j] + 128) * 256^j = sum of q[j] * 256^j + 0x80808080.
template <DType dtype>
void quantize_planes_of(const void* x, int64_t plane, int64_t channels, int64_t pixels, float inverse, uint8_t* q) {
  const __m256 factor = _mm256_set1_ps(inverse);
  const int64_t whole_pixels = pixels / 8 * 8, whole_channels = channels / 4 * 4;
  for (int64_t p = 0; p < whole_pixels; p += 8) {
    for (int64_t c = 0; c < whole_channels; c += 4) {
      __m256i sum = _mm256_set1_epi32(static_cast<int>(0x80808080u));
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j)
        sum = _mm256_add_epi32(sum, _mm256_slli_epi32(rounded<dtype>(x, (c + j) * plane + p, factor), 8 * j));
      alignas(32) uint32_t lanes[8];
      _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sum);
      for (int64_t i = 0; i < 8; ++i) std::memcpy(q + (p + i) * channels + c, lanes + i, 4);
    }
  }
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t c = p < whole_pixels ? whole_channels : 0; c < channels; ++c)
      q[p * channels + c] = quantized(load_float(x, dtype, c * plane + p), inverse);
}

uint32_t largest(const void* x, DType dtype, int64_t count) {
  if (dtype == DType::f32) return largest_magnitude<DType::f32>(x, 0, count);
  return dtype == DType::bf16 ? largest_magnitude<DType::bf16>(x, 0, count)
                              : largest_magnitude<DType::f16>(x, 0, count);
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
    for (int64_t i = 0; i < r.segment_bytes; i += 32) {
      const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), v);
    }
  });
}

}  // namespace

const ConvImageKernels conv_image_avx2 = {largest, quantize, quantize_planes, rows, depthwise, nullptr};

}  // namespace bigmodel
