#include <immintrin.h>

#include "tiles.h"

namespace bigmodel {
namespace {

__m512 load(const void* x, DType dtype, int64_t i, __mmask16 mask) {
  if (dtype == DType::f32) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(x) + i);
  const __m256i h = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(x) + i);
  if (dtype == DType::f16) return _mm512_cvtph_ps(h);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

// Round to nearest even; NaN stays NaN.
__m256i to_bf16(__m512 v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}

void store(void* out, DType dtype, int64_t i, __mmask16 mask, __m512 v) {
  if (dtype == DType::f32) {
    if (mask == 0xffff)
      _mm512_storeu_ps(static_cast<float*>(out) + i, v);
    else
      _mm512_mask_storeu_ps(static_cast<float*>(out) + i, mask, v);
    return;
  }
  const __m256i h =
      dtype == DType::f16 ? _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC) : to_bf16(v);
  if (mask == 0xffff)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(static_cast<uint16_t*>(out) + i), h);
  else
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(out) + i, mask, h);
}

// v[i][j] <-> v[j][i]: pairs of lanes, then pairs of those, then the 128-bit quarters, twice.
void transpose(__m512* v) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      const __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + j + 2]);
      v[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      v[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  }
  for (int j = 0; j < 4; ++j) {
    const __m512 a = _mm512_shuffle_f32x4(v[j], v[j + 4], 0x88), b = _mm512_shuffle_f32x4(v[j], v[j + 4], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(v[j + 8], v[j + 12], 0x88),
                 d = _mm512_shuffle_f32x4(v[j + 8], v[j + 12], 0xdd);
    t[j] = _mm512_shuffle_f32x4(a, c, 0x88);
    t[j + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
    t[j + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
    t[j + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
  for (int i = 0; i < 16; ++i) v[i] = t[i];
}

__mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << count) - 1); }

// 16 rows at a time from end to end: as many streams as the processor prefetches. Whole vectors are stored without a
// mask, which costs more than the store.
void pack(const void* x, DType dtype, int64_t stride, int64_t rows, int64_t columns, int64_t width, float* tile) {
  if (width == 1) {
    for (int64_t c = 0; c < columns; c += 16) {
      const __mmask16 mask = first_lanes(columns - c);
      _mm512_mask_storeu_ps(tile + c, mask, load(x, dtype, c, mask));
    }
    return;
  }
  for (int64_t r = 0; r < width; r += 16) {
    for (int64_t c = 0; c < columns; c += 16) {
      const __mmask16 mask = first_lanes(columns - c);
      __m512 v[16];
      for (int64_t i = 0; i < 16; ++i)
        v[i] = r + i < rows ? load(x, dtype, (r + i) * stride + c, mask) : _mm512_setzero_ps();
      transpose(v);
      if (columns - c >= 16)
        for (int64_t i = 0; i < 16; ++i) _mm512_storeu_ps(tile + (c + i) * width + r, v[i]);
      else
        for (int64_t i = 0; i < columns - c; ++i) _mm512_storeu_ps(tile + (c + i) * width + r, v[i]);
    }
  }
}

void unpack(const float* tile, int64_t rows, int64_t columns, int64_t width, const float* bias, void* out, DType dtype,
            int64_t stride) {
  for (int64_t r = 0; r < (width == 1 ? 1 : rows); r += 16) {
    for (int64_t c = 0; c < columns; c += 16) {
      const __mmask16 mask = first_lanes(columns - c);
      const __m512 b = bias ? _mm512_maskz_loadu_ps(mask, bias + c) : _mm512_set1_ps(-0.0f);  // -0 changes nothing
      if (width == 1) {
        store(out, dtype, c, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, tile + c), b));
        continue;
      }
      __m512 v[16];
      for (int64_t i = 0; i < 16; ++i)
        v[i] = c + i < columns ? _mm512_loadu_ps(tile + (c + i) * width + r) : _mm512_setzero_ps();
      transpose(v);
      for (int64_t i = 0; i < 16 && r + i < rows; ++i)
        store(out, dtype, (r + i) * stride + c, mask, _mm512_add_ps(v[i], b));
    }
  }
}

}  // namespace

const TileKernels tile_kernels_avx512 = {pack, unpack};

}  // namespace bigmodel
