#include <immintrin.h>

#include "conv_tile_loops.h"

namespace bigmodel {
namespace {

inline __mmask16 first_lanes(int64_t count) {
  return count >= 16 ? __mmask16{0xffff} : count <= 0 ? __mmask16{0} : static_cast<__mmask16>((1u << count) - 1u);
}

// Up to 16 lanes of a run.
struct Piece {
  int64_t from, to;
  __mmask16 low, high;  // which elements are read from `from` on, and 16 further on
};

// 16 elements, `step` apart.
template <int step>
inline __m512 load_apart(const float* planes, const Piece& piece) {
  const __m512 low = _mm512_maskz_loadu_ps(piece.low, planes + piece.from);
  if (step == 1) return low;
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return _mm512_permutex2var_ps(low, even, _mm512_maskz_loadu_ps(piece.high, planes + piece.from + 16));
}

// Whole vectors are stored: what a run writes too much is overwritten by the next run or column, or lies in the slack.
template <int step>
void gather_apart(const ConvTile& t) {
  Piece pieces[64 + 4];  // a tile has 64 lanes: so many runs, or four vectors of whole runs and a rest for each
  int64_t count = 0;
  for (int64_t r = 0; r < t.run_count; ++r) {
    const ConvRun run = t.runs[r];
    for (int64_t i = 0; i < run.count; i += 16) {
      const int64_t left = run.count - i, reach = step * ((left < 16 ? left : 16) - 1) + 1;
      pieces[count++] = {run.from + i * step, run.to + i, first_lanes(reach), first_lanes(reach - 16)};
    }
  }
  float* column = t.tile;
  for (int64_t k = 0; k < t.columns; ++k, column += t.width) {
    const float* plane = t.planes + t.offset[k];
    for (int64_t i = 0; i < count; ++i) _mm512_storeu_ps(column + pieces[i].to, load_apart<step>(plane, pieces[i]));
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
