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

// An entry's place in the tile. The compiler is kept from computing it later, where it is used.
template <int W>
inline int64_t place(uint64_t column) {
  int64_t at = static_cast<int64_t>(column & 255) * (W * 64);
  asm("" : "+r"(at));
  return at;
}

// Where a kernel is in the matrix.
struct Position {
  int64_t entry;
  int64_t at[2];   // places of this entry and the next
  uintptr_t turn;  // all ones or 0: whose turn it is to be prefetched
};

// `N` entries' products with W vectors each: Math::add(sum, v, 64 bytes of the tile). Alternating sums, because one
// multiply-add waits for the one before it on the same register.
template <typename Math, int W, int N, int Sets>
inline __attribute__((always_inline)) void add_entries(const char* x, const Segments& s, Position& p,
                                                       typename Math::Vector (*sum)[W]) {
  constexpr int64_t kAhead = 512;  // the processor's own prefetching stops at each 4 KiB page
  const int64_t i = p.entry;
  const uintptr_t values_ahead = reinterpret_cast<uintptr_t>(s.values) + (i + kAhead) * Math::kBytes;
  const uintptr_t col_ahead = reinterpret_cast<uintptr_t>(s.col) + i + kAhead;
  _mm_prefetch(reinterpret_cast<const char*>(col_ahead ^ ((col_ahead ^ values_ahead) & p.turn)), _MM_HINT_T0);
  p.turn = ~p.turn;
  const typename Math::Vector values = Math::template load<N>(s.values, i);
  uint64_t columns;
  __builtin_memcpy(&columns, s.col + i + 2, 8);
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j, columns >>= 8) {
    const typename Math::Vector v = Math::take(values, j);
    const char* from = x + p.at[j % 2];
    for (int w = 0; w < W; ++w) sum[j % Sets][w] = Math::add(sum[j % Sets][w], v, from + w * 64);
    p.at[j % 2] = place<W>(columns);
  }
  if (N % 2) {
    const int64_t next = p.at[1];
    p.at[1] = p.at[0];
    p.at[0] = next;
  }
  p.entry = i + N;
}

// Consecutive segments from r on of one length, 8 * eights + Rest, up to `end`; returns where it stopped.
template <typename Math, int W, int Rest>
inline __attribute__((always_inline)) int64_t add_run(const char* x, const Segments& s, int64_t r, int64_t end,
                                                      int64_t eights, char* y) {
  constexpr int kSets = W <= 2 ? 4 : 2;
  using Vector = typename Math::Vector;
  Position p = {s.crow[r], {place<W>(s.col[s.crow[r]]), place<W>(s.col[s.crow[r] + 1])}, 0};
  const int64_t length = 8 * eights + Rest;
  do {
    char* to = y + (s.order[r] & (kBlockRows - 1)) * (W * 64);
    Vector sum[kSets][W];
    for (int w = 0; w < W; ++w) sum[0][w] = Math::load_sum(to + w * 64);
    for (int k = 1; k < kSets; ++k)
      for (int w = 0; w < W; ++w) sum[k][w] = Math::zero();
    for (int64_t e = 0; e < eights; ++e) add_entries<Math, W, 8, kSets>(x, s, p, sum);
    if (Rest) add_entries<Math, W, Rest ? Rest : 1, kSets>(x, s, p, sum);
    for (int k = 1; k < kSets; ++k)
      for (int w = 0; w < W; ++w) sum[0][w] = Math::plus(sum[0][w], sum[k][w]);
    for (int w = 0; w < W; ++w) Math::store_sum(to + w * 64, sum[0][w]);
    ++r;
  } while (r < end && s.crow[r + 1] - p.entry == length);
  return r;
}

// One segment, reading nothing beyond it.
template <typename Math, int W>
void add_segment(const char* x, const Segments& s, int64_t r, char* y) {
  char* to = y + (s.order[r] & (kBlockRows - 1)) * (W * 64);
  for (int64_t i = s.crow[r]; i < s.crow[r + 1]; ++i) {
    const typename Math::Vector v = Math::broadcast(s.values, i);
    const char* from = x + s.col[i] * (W * 64);
    for (int w = 0; w < W; ++w) Math::store_sum(to + w * 64, Math::add(Math::load_sum(to + w * 64), v, from + w * 64));
  }
}

template <typename Math, int W>
void add_segments(const char* x, const Segments& s, char* y) {
  constexpr int64_t kBeyond = 16;  // entries that a run may read after its last
  int64_t end = s.count;
  while (end > 0 && s.crow[end] + kBeyond > s.nnz) --end;
  for (int64_t r = 0; r < end;) {
    const int64_t length = s.crow[r + 1] - s.crow[r], eights = length >> 3;
    switch (length & 7) {
      case 0:
        r = length ? add_run<Math, W, 0>(x, s, r, end, eights, y) : r + 1;
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
