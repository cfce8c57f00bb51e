#include "lanes_avx512.h"
#include "tiles.h"

namespace bigmodel {
namespace {

inline __m512 load(const void* x, DType dtype, int64_t i, __mmask16 mask) {
  if (dtype == DType::f32) return load16<DType::f32>(x, i, mask);
  return dtype == DType::f16 ? load16<DType::f16>(x, i, mask) : load16<DType::bf16>(x, i, mask);
}

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
        store16(out, dtype, c, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, tile + c), b));
        continue;
      }
      __m512 v[16];
      for (int64_t i = 0; i < 16; ++i)
        v[i] = c + i < columns ? _mm512_loadu_ps(tile + (c + i) * width + r) : _mm512_setzero_ps();
      transpose(v);
      for (int64_t i = 0; i < 16 && r + i < rows; ++i)
        store16(out, dtype, (r + i) * stride + c, mask, _mm512_add_ps(v[i], b));
    }
  }
}

}  // namespace

const TileKernels tile_kernels_avx512 = {pack, unpack};

}  // namespace bigmodel
