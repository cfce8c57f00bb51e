#include <immintrin.h>

#include "tiles.h"

namespace bigmodel {
namespace {

__m256i first_lanes(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count >= 8 ? 8 : static_cast<int>(count)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

__m256 widen(__m128i h, DType dtype) {
  if (dtype == DType::f16) return _mm256_cvtph_ps(h);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

// Up to 8 elements; lanes from `count` on are 0.
__m256 load(const void* x, DType dtype, int64_t i, int64_t count) {
  if (dtype == DType::f32) {
    const float* from = static_cast<const float*>(x) + i;
    return count >= 8 ? _mm256_loadu_ps(from) : _mm256_maskload_ps(from, first_lanes(count));
  }
  const uint16_t* from = static_cast<const uint16_t*>(x) + i;
  if (count >= 8) return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)), dtype);
  alignas(16) uint16_t part[8] = {};
  for (int64_t j = 0; j < count; ++j) part[j] = from[j];
  return widen(_mm_load_si128(reinterpret_cast<const __m128i*>(part)), dtype);
}

// Round to nearest even; NaN stays NaN.
__m128i to_bf16(__m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

void store(void* out, DType dtype, int64_t i, int64_t count, __m256 v) {
  if (dtype == DType::f32) {
    float* to = static_cast<float*>(out) + i;
    if (count >= 8)
      _mm256_storeu_ps(to, v);
    else
      _mm256_maskstore_ps(to, first_lanes(count), v);
    return;
  }
  const __m128i h =
      dtype == DType::f16 ? _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC) : to_bf16(v);
  uint16_t* to = static_cast<uint16_t*>(out) + i;
  if (count >= 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), h);
    return;
  }
  alignas(16) uint16_t part[8];
  _mm_store_si128(reinterpret_cast<__m128i*>(part), h);
  for (int64_t j = 0; j < count; ++j) to[j] = part[j];
}

// v[i][j] <-> v[j][i]: pairs of lanes, then pairs of those, then the 128-bit halves.
void transpose(__m256* v) {
  __m256 t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
  __m256 u[8];
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      u[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
      u[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xee);
    }
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    v[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

void pack(const void* x, DType dtype, int64_t stride, int64_t rows, int64_t columns, int64_t width, float* tile) {
  for (int64_t c = 0; c < columns; c += 8) {
    const int64_t count = columns - c < 8 ? columns - c : 8;
    if (width == 1) {
      store(tile, DType::f32, c, count, load(x, dtype, c, count));
      continue;
    }
    for (int64_t r = 0; r < width; r += 8) {
      __m256 v[8];
      for (int64_t i = 0; i < 8; ++i)
        v[i] = r + i < rows ? load(x, dtype, (r + i) * stride + c, count) : _mm256_setzero_ps();
      transpose(v);
      for (int64_t i = 0; i < count; ++i) _mm256_storeu_ps(tile + (c + i) * width + r, v[i]);
    }
  }
}

void unpack(const float* tile, int64_t rows, int64_t columns, int64_t width, const float* bias, void* out, DType dtype,
            int64_t stride) {
  for (int64_t c = 0; c < columns; c += 8) {
    const int64_t count = columns - c < 8 ? columns - c : 8;
    const __m256 b = bias ? load(bias, DType::f32, c, count) : _mm256_set1_ps(-0.0f);  // adding -0 changes nothing
    if (width == 1) {
      store(out, dtype, c, count, _mm256_add_ps(load(tile, DType::f32, c, count), b));
      continue;
    }
    for (int64_t r = 0; r < rows; r += 8) {
      __m256 v[8];
      for (int64_t i = 0; i < 8; ++i)
        v[i] = i < count ? _mm256_loadu_ps(tile + (c + i) * width + r) : _mm256_setzero_ps();
      transpose(v);
      for (int64_t i = 0; i < 8 && r + i < rows; ++i)
        store(out, dtype, (r + i) * stride + c, count, _mm256_add_ps(v[i], b));
    }
  }
}

}  // namespace

const TileKernels tile_kernels_avx2 = {pack, unpack};

}  // namespace bigmodel
