// One vpdpbusd multiplies 4 x 16 pairs. A tile of 6 rows by 64 columns keeps 24 sums in registers; each step of K loads
// 4 vectors of weights and broadcasts 6 groups of activations for 24 multiplications, so arithmetic is the limit.
#include <immintrin.h>

#include <cstring>

#include "int8_panel.h"
#include "int8_panel_avx512.h"

namespace bigmodel {
namespace {

constexpr int kVectors = 4;  // 64 columns
constexpr int kMaxRows = 6;

inline __m512i broadcast4(const uint8_t* a) {
  int32_t group;
  std::memcpy(&group, a, 4);
  return _mm512_set1_epi32(group);
}

// sums [rows, 64]. Per group of K, `lines` cache lines are fetched from `ahead` on: into L1 if they are about to be
// used (4 lines: as fast as weights are consumed), else into L2. Up to 2 rows, two sets of sums hide the latency of
// one. Arrays stay in registers only as long as they are local and every index is a constant: hence one function,
// unrolled.
template <int rows, int lines>
void tile(const uint8_t* a, int64_t a_stride, const int8_t* b, int64_t groups, const int8_t* ahead, int32_t* sums) {
  constexpr int kSets = rows <= 2 ? 2 : 1;
  __m512i acc[kSets][rows][kVectors];
#pragma GCC unroll 8
  for (int s = 0; s < kSets; ++s) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) acc[s][r][c] = _mm512_setzero_si512();
    }
  }
  for (; groups >= kSets; groups -= kSets) {
#pragma GCC unroll 8
    for (int s = 0; s < kSets; ++s) {
#pragma GCC unroll 8
      for (int i = 0; i < lines; ++i, ahead += 64) _mm_prefetch(ahead, lines == 1 ? _MM_HINT_T1 : _MM_HINT_T0);
      __m512i weights[kVectors];
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) weights[c] = _mm512_loadu_si512(b + c * 64);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const __m512i activations = broadcast4(a + r * a_stride);
#pragma GCC unroll 8
        for (int c = 0; c < kVectors; ++c) acc[s][r][c] = _mm512_dpbusd_epi32(acc[s][r][c], activations, weights[c]);
      }
      a += 4;
      b += 256;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    const __m512i activations = groups ? broadcast4(a + r * a_stride) : _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) {
      __m512i sum = acc[0][r][c];
      if (kSets == 2) {
        sum = _mm512_add_epi32(sum, acc[kSets - 1][r][c]);
        if (groups) sum = _mm512_dpbusd_epi32(sum, activations, _mm512_loadu_si512(b + c * 64));
      }
      _mm512_storeu_si512(sums + r * kPanelColumns + c * 16, sum);
    }
  }
}

using Tile = void (*)(const uint8_t*, int64_t, const int8_t*, int64_t, const int8_t*, int32_t*);
constexpr Tile streaming[kMaxRows] = {tile<1, 4>, tile<2, 4>, tile<3, 4>, tile<4, 4>, tile<5, 4>, tile<6, 4>};
constexpr Tile reusing[kMaxRows] = {tile<1, 1>, tile<2, 1>, tile<3, 1>, tile<4, 1>, tile<5, 1>, tile<6, 1>};

}  // namespace

void int8_panel_avx512vnni(const Int8Panel& p) {
  constexpr int64_t kAhead = 4096;  // bytes between the weights in use and those being fetched when they stream
  // With 4 tiles or more each of the first 4 fetches a quarter of the next weights while its own are in cache;
  // with fewer, the first fetches its own as it goes (running into the next ones at the end).
  const bool stream = p.rows <= 3 * kMaxRows;
  const int8_t* ahead = stream ? p.b + kAhead : p.next;
  const Finish finish = pick_finish(p);
  alignas(64) int32_t sums[kMaxRows * kPanelColumns];
  for (int64_t row = 0; row < p.rows;) {
    const int64_t left = p.rows - row;
    const int64_t rows = left == kMaxRows + 1 ? 4 : left < kMaxRows ? left : kMaxRows;  // 7 is 4 + 3, not 6 + 1
    const Tile* tiles = stream && row == 0 ? streaming : reusing;
    tiles[rows - 1](p.a + row * p.a_stride, p.a_stride, p.b, p.groups, ahead, sums);
    finish(p, row, rows, sums);
    if (stream) {
      ahead = p.b;
    } else if (row < 3 * kMaxRows) {
      ahead += p.groups * 64;
    }
    row += rows;
  }
}

}  // namespace bigmodel
