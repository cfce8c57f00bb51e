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

// Where a tile's results go: rows of 64 float32 or int32, `stride` elements apart.
struct Out {
  char* rows;
  int64_t stride;
};

// The rows of p from `row` on. Per group of K, `lines` cache lines are fetched from `ahead` on: into L1 if they are
// about to be used (4 lines: as fast as weights are consumed), else into L2. Up to 2 rows, two sets of sums hide the
// latency of one.
// Arrays stay in registers only as long as they are local, every index is a constant and the empty asm stands between
// the loop and the use of its sums (else GCC copies all of them in every step): hence one function, unrolled.
template <int rows, int lines, bool real>
void tile(const Int8Panel& p, int64_t row, const char* ahead, Out out) {
  constexpr int kSets = rows <= 2 ? 2 : 1;
  const uint8_t* a = p.a + row * p.a_stride;
  const int64_t a_stride = p.a_stride;
  const int8_t* b = p.b;
  __m512i acc[kSets][rows][kVectors];
#pragma GCC unroll 8
  for (int c = 0; c < kVectors; ++c) {
    const __m512i zero = _mm512_setzero_si512();
    const __m512i start = p.compensation ? _mm512_sub_epi32(zero, _mm512_loadu_si512(p.compensation + c * 16)) : zero;
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const int32_t* earlier = p.partial + (row + r) * kPanelColumns + c * 16;
      acc[0][r][c] = p.first ? start : _mm512_add_epi32(start, _mm512_loadu_si512(earlier));
      if (kSets == 2) acc[kSets - 1][r][c] = zero;
    }
  }
  int64_t groups = p.groups;
  for (; groups >= kSets; groups -= kSets) {
#pragma GCC unroll 8
    for (int s = 0; s < kSets; ++s) {
#pragma GCC unroll 8
      for (int i = 0; i < lines; ++i, ahead += 64) _mm_prefetch(ahead, lines == 4 ? _MM_HINT_T0 : _MM_HINT_T1);
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
  __m512 weight_scale[kVectors], bias[kVectors];
#pragma GCC unroll 8
  for (int c = 0; c < kVectors; ++c) {
    if (real) weight_scale[c] = _mm512_loadu_ps(p.weight_scale + c * 16);
    bias[c] = real && p.bias ? _mm512_loadu_ps(p.bias + c * 16) : _mm512_set1_ps(-0.0f);  // y + -0 is y for every y
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    const __m512i activations = groups ? broadcast4(a + r * a_stride) : _mm512_setzero_si512();
    const __m512 x_scale = _mm512_set1_ps(real ? p.x_scale[row + r] : 0.0f);
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) {
      __m512i sum = acc[0][r][c];
      if (kSets == 2) {
        sum = _mm512_add_epi32(sum, acc[kSets - 1][r][c]);
        if (groups) sum = _mm512_dpbusd_epi32(sum, activations, _mm512_loadu_si512(b + c * 64));
      }
      __asm__ volatile("" : "+v"(sum));
      char* to = out.rows + (r * out.stride + c * 16) * 4;
      if (real) {
        const __m512 y = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), x_scale), weight_scale[c]);
        _mm512_storeu_ps(to, _mm512_add_ps(y, bias[c]));
      } else {
        _mm512_storeu_si512(to, sum);
      }
    }
  }
}

using Tile = void (*)(const Int8Panel&, int64_t, const char*, Out);
template <int lines, bool real>
constexpr Tile tiles[kMaxRows] = {tile<1, lines, real>, tile<2, lines, real>, tile<3, lines, real>,
                                  tile<4, lines, real>, tile<5, lines, real>, tile<6, lines, real>};

// What a tile fetches: with few tiles the first its own weights as it goes (into the next ones at the end); else, while
// its own are in cache, the first four the next weights (faster, and memory would not keep up) and later ones what
// follows those.
const char* worth_fetching(const Int8Panel& p, bool stream, int64_t tile) {
  constexpr int64_t kAhead = 4096;  // bytes between the weights in use and those being fetched
  const char* b = reinterpret_cast<const char*>(p.b);
  if (stream) return tile == 0 ? b + kAhead : b;
  const int64_t share = p.groups * 64;  // a line a group
  if (tile < 4) return reinterpret_cast<const char*>(p.next) + tile * share;
  const int64_t at = (tile - 4) * share;
  return at < p.soon_bytes ? p.soon + at : b;
}

}  // namespace

void int8_panel_avx512vnni(const Int8Panel& p) {
  const bool stream = p.rows <= 3 * kMaxRows, real = p.last && p.out_dtype != DType::i32;
  const Tile* streaming = real ? tiles<4, true> : tiles<4, false>;
  const Tile* reusing = real ? tiles<1, true> : tiles<1, false>;
  const bool direct = p.columns == kPanelColumns && (p.out_dtype == DType::f32 || p.out_dtype == DType::i32);
  alignas(64) float y[kMaxRows * kPanelColumns];
  const int64_t count = (p.rows + kMaxRows - 1) / kMaxRows;
  for (int64_t i = 0, row = 0; i < count; ++i) {
    const int64_t rows = p.rows / count + (i < p.rows % count);
    Out out = {reinterpret_cast<char*>(y), kPanelColumns};
    if (!p.last) {
      out.rows = reinterpret_cast<char*>(p.partial + row * kPanelColumns);
    } else if (direct) {
      out = {static_cast<char*>(p.out) + row * p.out_stride * 4, p.out_stride};
    }
    (stream && i == 0 ? streaming : reusing)[rows - 1](p, row, worth_fetching(p, stream, i), out);
    if (real && p.activate)  // the tile is in the first-level cache
      p.activate(reinterpret_cast<float*>(out.rows), rows, kPanelColumns, out.stride, nullptr);
    if (p.last && !direct) store_rows(p, row, rows, y);
    row += rows;
  }
}

}  // namespace bigmodel
