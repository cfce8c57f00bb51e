#include <immintrin.h>

#include "conv_tile_loops.h"

namespace bigmodel {
namespace {

inline __mmask16 first_lanes(int64_t count) {
  return count >= 16 ? __mmask16{0xffff} : count <= 0 ? __mmask16{0} : static_cast<__mmask16>((1u << count) - 1u);
}

// 16 elements, `step` apart, of which `count` exist.
template <int step>
inline __m512 load_apart(const float* from, int64_t count) {
  if (step == 1) return _mm512_maskz_loadu_ps(first_lanes(count), from);
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const int64_t last = 2 * count - 1;  // elements from the first to the last that is wanted
  return _mm512_permutex2var_ps(_mm512_maskz_loadu_ps(first_lanes(last), from), even,
                                _mm512_maskz_loadu_ps(first_lanes(last - 16), from + 16));
}

// Whole vectors are stored: what a run writes too much is overwritten by the next run or column, or lies in the slack.
template <int step>
void gather_apart(const ConvTile& t) {
  for (int64_t k = 0; k < t.columns; ++k) {
    const float* plane = t.planes + t.offset[k];
    float* column = t.tile + k * t.width;
    for (int64_t r = 0; r < t.run_count; ++r) {
      const ConvRun run = t.runs[r];
      for (int64_t i = 0; i < run.count; i += 16)
        _mm512_storeu_ps(column + run.to + i, load_apart<step>(plane + run.from + i * step, run.count - i));
    }
  }
}

void gather_vectors(const ConvTile& t) {
  if (t.step == 1) return gather_apart<1>(t);
  if (t.step == 2) return gather_apart<2>(t);
  gather(t);
}

}  // namespace

const ConvTileKernels conv_tile_avx512 = {gather_vectors, store};

}  // namespace bigmodel
