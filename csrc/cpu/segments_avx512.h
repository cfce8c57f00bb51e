// Products of a block's segments with a tile of activations: what the AVX-512 kernels for float and for int8 weights
// share. Included by those two files only; everything is in an anonymous namespace, so each has its own copy.
//
// What limits this loop is two 64-byte loads a cycle, four of which an entry needs for 64 activations. Hence:
// - Values and columns are loaded 8 at a time and taken from registers.
// - An entry's address is ready two entries early. Loads whose address is only just known arrive in bursts, and a
//   burst's loads get in each other's way: 15 % of the whole.
// - Segments of one length follow each other (where the matrix is packed so), and each remainder of 8 has a body of its
//   own: few branches are mispredicted.
#pragma once

#include <immintrin.h>

#include "segments.h"

namespace bigmodel {
namespace {

constexpr int64_t kAhead = 512;  // entries prefetched ahead: the processor's own prefetching stops at each 4 KiB page

// An entry's place in the tile. The compiler is kept from computing it later, where it is used.
template <int W>
inline int64_t place(uint64_t column) {
  int64_t at = static_cast<int64_t>(column & 255) * (W * 64);
  asm volatile("" : "+r"(at));
  return at;
}

// Where a run is: what lies ahead in the matrix, and the places of the next two entries.
struct Position {
  const char* values;
  const uint8_t* col;
  int64_t at[2];
};

// `N` entries' products with W vectors each: Math::add(sum, v, 64 bytes of the tile). Alternating sums, because one
// multiply-add waits for the one before it on the same register.
template <typename Math, int W, int N, int Sets>
inline __attribute__((always_inline)) void add_entries(const char* x, Position& p, typename Math::Vector (*sum)[W]) {
  const typename Math::Vector values = Math::load8(p.values, 0);
  uint64_t columns;
  __builtin_memcpy(&columns, p.col + 2, 8);
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j, columns >>= 8) {
    const typename Math::Vector v = Math::take(values, _mm512_set1_epi32(j));
    const char* from = x + p.at[j % 2];
    for (int w = 0; w < W; ++w) sum[j % Sets][w] = Math::add(sum[j % Sets][w], v, from + w * 64);
    p.at[j % 2] = place<W>(columns);
  }
  if (N % 2) {
    const int64_t next = p.at[1];
    p.at[1] = p.at[0];
    p.at[0] = next;
  }
  p.values += N * Math::kBytes;
  p.col += N;
}

// Segments from r on, all of length 8 * eights + Rest as the one at r is, up to `end`; returns where that ends.
template <typename Math, int W, int Rest>
__attribute__((noinline)) int64_t add_run(const char* x, const Segments& segments, int64_t r, int64_t end,
                                          int64_t eights, char* y) {
  constexpr int kSets = W <= 2 ? 4 : 2;
  using Vector = typename Math::Vector;
  const int32_t* crow = segments.crow;  // copies: for all the compiler knows, a store to y could change the original
  const int32_t* order = segments.order;
  const uint8_t* col = segments.col + crow[r];
  Position p = {static_cast<const char*>(segments.values) + crow[r] * int64_t{Math::kBytes},
                col,
                {place<W>(col[0]), place<W>(col[1])}};
  const int32_t length = static_cast<int32_t>(8 * eights + Rest);
  do {
    _mm_prefetch(p.values + kAhead * Math::kBytes, _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(p.col) + kAhead, _MM_HINT_T0);
    char* to = y + (order[r] & (kBlockRows - 1)) * (W * 64);
    Vector sum[kSets][W];
    for (int w = 0; w < W; ++w) sum[0][w] = Math::load_sum(to + w * 64);
    for (int k = 1; k < kSets; ++k)
      for (int w = 0; w < W; ++w) sum[k][w] = Math::zero();
    int64_t e = eights;
    for (; e >= 2; e -= 2) {
      _mm_prefetch(p.values + (kAhead + 16) * Math::kBytes, _MM_HINT_T0);
      add_entries<Math, W, 8, kSets>(x, p, sum);
      add_entries<Math, W, 8, kSets>(x, p, sum);
    }
    if (e) add_entries<Math, W, 8, kSets>(x, p, sum);
    if (Rest) add_entries<Math, W, Rest ? Rest : 1, kSets>(x, p, sum);
    for (int k = 1; k < kSets; ++k)
      for (int w = 0; w < W; ++w) sum[0][w] = Math::plus(sum[0][w], sum[k][w]);
    for (int w = 0; w < W; ++w) Math::store_sum(to + w * 64, sum[0][w]);
    ++r;
  } while (r < end && crow[r + 1] - crow[r] == length);
  return r;
}

// One segment of any length, reading nothing beyond it.
template <typename Math, int W>
inline __attribute__((always_inline)) void add_segment(const char* x, const Segments& s, int64_t r, char* y) {
  constexpr int kSets = W == 1 ? 4 : 2;
  using Vector = typename Math::Vector;
  int64_t i = s.crow[r];
  const int64_t end = s.crow[r + 1];
  char* to = y + (s.order[r] & (kBlockRows - 1)) * (W * 64);
  Vector sum[kSets][W];
  for (int w = 0; w < W; ++w) sum[0][w] = Math::load_sum(to + w * 64);
  if (end - i >= 8) {
    for (int k = 1; k < kSets; ++k)
      for (int w = 0; w < W; ++w) sum[k][w] = Math::zero();
    for (; i + 8 <= end; i += 8) {
      _mm_prefetch(static_cast<const char*>(s.values) + (i + kAhead) * Math::kBytes, _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(s.col) + i + kAhead, _MM_HINT_T0);
      const Vector values = Math::load8(s.values, i);
      uint64_t columns;
      __builtin_memcpy(&columns, s.col + i, 8);
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j, columns >>= 8) {
        const Vector v = Math::take(values, _mm512_set1_epi32(j));
        const char* from = x + (columns & 255) * (W * 64);
        for (int w = 0; w < W; ++w) sum[j % kSets][w] = Math::add(sum[j % kSets][w], v, from + w * 64);
      }
    }
    for (int k = 1; k < kSets; ++k)
      for (int w = 0; w < W; ++w) sum[0][w] = Math::plus(sum[0][w], sum[k][w]);
  }
  if (i < end) {
    const int left = static_cast<int>(end - i);
    const __mmask16 mask = static_cast<__mmask16>((1 << left) - 1);
    const Vector values = Math::load(s.values, i, mask);
    uint64_t columns = static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_maskz_loadu_epi8(mask, s.col + i)));
    __m512i lane = _mm512_setzero_si512();
    for (int j = 0; j < left; ++j, columns >>= 8) {
      const Vector v = Math::take(values, lane);
      lane = _mm512_add_epi32(lane, _mm512_set1_epi32(1));
      const char* from = x + (columns & 255) * (W * 64);
      for (int w = 0; w < W; ++w) sum[0][w] = Math::add(sum[0][w], v, from + w * 64);
    }
  }
  for (int w = 0; w < W; ++w) Math::store_sum(to + w * 64, sum[0][w]);
}

template <typename Math, int W>
void add_segments(const char* x, const Segments& s, char* y) {
  constexpr int64_t kBeyond = 16;  // entries that a run may read after its last
  int64_t end = s.count;
  while (end > 0 && s.crow[end] + kBeyond > s.nnz) --end;
  for (int64_t r = 0; r < end;) {
    const int64_t length = s.crow[r + 1] - s.crow[r], eights = length >> 3;
    if (length == 0 || r + 1 == end || s.crow[r + 2] - s.crow[r + 1] != length) {
      if (length) add_segment<Math, W>(x, s, r, y);
      ++r;
      continue;
    }
    switch (length & 7) {
      case 0:
        r = add_run<Math, W, 0>(x, s, r, end, eights, y);
        break;
      case 1:
        r = add_run<Math, W, 1>(x, s, r, end, eights, y);
        break;
      case 2:
        r = add_run<Math, W, 2>(x, s, r, end, eights, y);
        break;
      case 3:
        r = add_run<Math, W, 3>(x, s, r, end, eights, y);
        break;
      case 4:
        r = add_run<Math, W, 4>(x, s, r, end, eights, y);
        break;
      case 5:
        r = add_run<Math, W, 5>(x, s, r, end, eights, y);
        break;
      case 6:
        r = add_run<Math, W, 6>(x, s, r, end, eights, y);
        break;
      default:
        r = add_run<Math, W, 7>(x, s, r, end, eights, y);
    }
  }
  for (int64_t r = end; r < s.count; ++r) add_segment<Math, W>(x, s, r, y);
}

// y [512][width] += the segments times x, a panel's tile [256][width]; width 16, 32, 48 or 64 numbers of 4 bytes.
template <typename Math>
void add_segments(const void* tile, int64_t width, const Segments& s, void* sums) {
  const char* x = static_cast<const char*>(tile);
  char* y = static_cast<char*>(sums);
  switch (width) {
    case 16:
      return add_segments<Math, 1>(x, s, y);
    case 32:
      return add_segments<Math, 2>(x, s, y);
    case 48:
      return add_segments<Math, 3>(x, s, y);
    default:
      return add_segments<Math, 4>(x, s, y);
  }
}

}  // namespace
}  // namespace bigmodel
