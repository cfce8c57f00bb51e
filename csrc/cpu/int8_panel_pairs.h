// int8_panel without vpdpbusd, for AVX2 and AVX-512, in the vector operations that the including file defines.
//
// The exact way is 16-bit: vpmaddwd sums two products in int32, while vpmaddubsw saturates (two products reach 65,280).
// In 16-bit lanes a group of 4 weights is two words: their high bytes, sign-extended by a shift, are weights 1 and 3,
// their low bytes 0 and 2, extended to w + kLowOffset by what is fastest. Times the words (a1, a3) and (a0, a2) of a
// row that gives sums in which each 32-bit lane is an output; they start at -kLowOffset times the sum of all a0 and a2.
//
// Included by those two files only; everything is in an anonymous namespace, so each has its own copy and no other file
// can be linked to one.
#pragma once

#include <cstring>

#include "int8_panel.h"

namespace bigmodel {
namespace {

constexpr int kMaxRows = 6;
constexpr int kRowPairs = 2 * (kPanelMaxGroups + 16);  // of a row of pairs, padded: not a power of two from the next
constexpr int kOdd = kRowPairs / 2;                    // where a row's pairs (a1, a3) begin, after its (a0, a2)

struct Rows {
  alignas(64) uint32_t pairs[kMaxRows * kRowPairs];
  int32_t start[kMaxRows];  // of a row's sums
};

// Where a tile's results go: rows of float32 or int32, `stride` elements apart.
struct Out {
  char* rows;
  int64_t stride;
};

// With few rows more columns at once: sums that do not wait for each other.
constexpr int vectors_of(int rows) { return rows == 1 ? kMostVectors : rows == 2 ? 4 : kTileVectors; }

// `rows` rows of p from `row` on, which are in `from`, by the columns from n on. Per group of K, `lines` cache lines
// are fetched from `ahead` on: into L1 if they are about to be used (4 lines: as fast as weights are consumed), else
// L2. Arrays stay in registers only as long as they are local and every index is a constant: hence one function,
// unrolled.
template <int rows, int lines, bool real>
void tile(const Int8Panel& p, int64_t row, int n, const Rows& from, const char* ahead, Out out) {
  constexpr int kVectors = vectors_of(rows);
  const int8_t* b = p.b + n * 4;
  const uint32_t* a = from.pairs;
  Ints acc[rows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) acc[r][c] = set(from.start[r]);
  }
  for (int64_t g = 0; g < p.groups; ++g, ++a, b += 256) {
#pragma GCC unroll 8
    for (int i = 0; i < lines; ++i, ahead += 64) _mm_prefetch(ahead, lines == 4 ? _MM_HINT_T0 : _MM_HINT_T1);
    if (rows == 1) {
      const Ints even = broadcast(a), odd = broadcast(a + kOdd);
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) {
        const Ints weights = load(b + c * sizeof(Ints));
        acc[0][c] = multiply_add(acc[0][c], even, low_bytes(weights));
        acc[0][c] = multiply_add(acc[0][c], odd, high_bytes(weights));
      }
      continue;
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      Ints weights[kVectors];
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) {
        const Ints four = load(b + c * sizeof(Ints));
        weights[c] = half ? high_bytes(four) : low_bytes(four);
      }
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const Ints pair = broadcast(a + r * kRowPairs + half * kOdd);
#pragma GCC unroll 8
        for (int c = 0; c < kVectors; ++c) acc[r][c] = multiply_add(acc[r][c], pair, weights[c]);
      }
    }
  }
#pragma GCC unroll 8
  for (int c = 0; c < kVectors; ++c) {
    const int at = n + c * kLanes;
    const Ints compensation = p.compensation ? load(p.compensation + at) : set(0);
    const Floats weight_scale = real ? load_floats(p.weight_scale + at) : set(0.0f);
    const Floats bias = real && p.bias ? load_floats(p.bias + at) : set(-0.0f);  // y + -0 is y for every y
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      Ints sum = subtract(acc[r][c], compensation);
      if (!p.first) sum = add(sum, load(p.partial + (row + r) * kPanelColumns + at));
      char* to = out.rows + (r * out.stride + at) * 4;
      if (real) {
        store(to, plus(times(times(to_floats(sum), set(p.x_scale[row + r])), weight_scale), bias));
      } else {
        store(to, sum);
      }
    }
  }
}

using Tile = void (*)(const Int8Panel&, int64_t, int, const Rows&, const char*, Out);
template <int lines, bool real>
constexpr Tile tiles[kMaxRows] = {tile<1, lines, real>, tile<2, lines, real>, tile<3, lines, real>,
                                  tile<4, lines, real>, tile<5, lines, real>, tile<6, lines, real>};

// Row r's bytes as pairs of words: (a0, a2) of each group, and from kOdd on (a1, a3).
void widen(const uint8_t* a, int64_t groups, int r, Rows& to) {
  uint32_t* pairs = to.pairs + r * kRowPairs;
  Ints sums = set(0);
  int64_t g = 0;
  for (; g + kLanes <= groups; g += kLanes) {
    const Ints four = load(a + 4 * g), even = unsigned_low_bytes(four);
    sums = multiply_add(sums, even, ones());
    store(reinterpret_cast<char*>(pairs + g), even);
    store(reinterpret_cast<char*>(pairs + kOdd + g), unsigned_high_bytes(four));
  }
  int32_t sum = sum_of(sums);
  for (; g < groups; ++g) {
    uint32_t four;
    std::memcpy(&four, a + 4 * g, 4);
    pairs[g] = four & 0x00ff00ffu;
    pairs[kOdd + g] = four >> 8 & 0x00ff00ffu;
    sum += a[4 * g] + a[4 * g + 2];
  }
  to.start[r] = -kLowOffset * sum;
}

// What the `pass`th pass over the weights fetches, one line a group: the next weights, then what follows those.
const char* worth_fetching(const Int8Panel& p, int64_t pass) {
  const int64_t at = pass * p.groups * 64, soon = at - p.groups * 256;
  if (soon < 0) return reinterpret_cast<const char*>(p.next) + at;
  return soon < p.soon_bytes ? p.soon + soon : reinterpret_cast<const char*>(p.b);
}

void run_panel(const Int8Panel& p) {
  constexpr int64_t kAhead = 4096;  // bytes between the weights in use and those being fetched
  const bool stream = p.rows <= 3 * kMaxRows, real = p.last && p.out_dtype != DType::i32;
  const bool direct = p.columns == kPanelColumns && (p.out_dtype == DType::f32 || p.out_dtype == DType::i32);
  const Tile* streaming = real ? tiles<4, true> : tiles<4, false>;
  const Tile* reusing = real ? tiles<1, true> : tiles<1, false>;
  Rows from;
  alignas(64) float y[kMaxRows * kPanelColumns];
  const int64_t count = (p.rows + kMaxRows - 1) / kMaxRows;
  for (int64_t i = 0, row = 0, pass = 0; i < count; ++i) {
    const int rows = static_cast<int>(p.rows / count + (i < p.rows % count));
    for (int r = 0; r < rows; ++r) widen(p.a + (row + r) * p.a_stride, p.groups, r, from);
    Out out = {reinterpret_cast<char*>(y), kPanelColumns};
    if (!p.last) {
      out.rows = reinterpret_cast<char*>(p.partial + row * kPanelColumns);
    } else if (direct) {
      out = {static_cast<char*>(p.out) + row * p.out_stride * 4, p.out_stride};
    }
    for (int n = 0; n < kPanelColumns; n += vectors_of(rows) * kLanes, ++pass) {
      const bool first = stream && pass == 0;
      const char* ahead = first    ? reinterpret_cast<const char*>(p.b) + kAhead
                          : stream ? reinterpret_cast<const char*>(p.b)
                                   : worth_fetching(p, pass);
      (first ? streaming : reusing)[rows - 1](p, row, n, from, ahead, out);
    }
    if (real && p.activate)  // the rows are in the first-level cache
      p.activate(reinterpret_cast<float*>(out.rows), rows, kPanelColumns, out.stride, nullptr);
    if (p.last && !direct) store_rows(p, row, rows, y);
    row += rows;
  }
}

}  // namespace
}  // namespace bigmodel
