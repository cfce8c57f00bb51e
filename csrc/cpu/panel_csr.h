// Panel-CSR, the layout of a sparse matrix W [N,K] (or of its 1x4 blocks, then K counts blocks): panels of `panel`
// columns, each in CSR order.
//
//   col   uint8 [nnz]               column within the panel
//   crow  int32 [panels * N + 1]    entries of row n in panel p: crow[p * N + n] up to crow[p * N + n + 1]
//   order int32 [panels * N]        or absent
//
// With `order`, the rows of each block of order_rows(N) may be stored in any order, panel by panel another: at place n
// of panel p is the block's row order[p * N + n]. Rows with equally many entries next to each other are multiplied
// faster.
//
// Trust: `crow` is checked in full on every call (it is small), so entries are always found within values and col.
// `col` and `order` are not, because at M=1 reading them once more would cost as much as the product. Instead every
// kernel's panel of activations or accumulators has 256 readable (writable) columns, so no byte can point outside: an
// entry whose column is not below its panel's width yields unspecified numbers in its own row (or is lost), never a
// stray access; where a pattern is transposed all of it is read, and then it is refused. Likewise a block's sums have
// room for every row that the 9 bits used of `order` can name.
#pragma once

#include <atomic>
#include <cstdint>
#include <new>

#include "../common/parallel.h"
#include "../common/view.h"
#include "segments.h"
#include "tiles.h"

namespace bigmodel {

constexpr int64_t kPanelColumns = 256;  // what an index byte can reach

// Rows of a block within which `order` permutes: blocks are even in number, as equal as their multiples of 16 allow,
// and have at most 512 rows.
inline int64_t order_rows(int64_t n) {
  const int64_t blocks = 2 * ((n + 2 * kBlockRows - 1) / (2 * kBlockRows));
  return blocks == 0 ? 16 : ((n + blocks - 1) / blocks + 15) / 16 * 16;
}

struct PanelCsr {
  const uint8_t* col;
  const int32_t* crow;
  const int32_t* order;  // of panel p and place n: order[p * order_stride + n * order_step]
  int64_t order_stride, order_step;
  int64_t n, k, panel, panels, nnz;
  int64_t step;   // rows may be shared out among threads in multiples of this
  int64_t block;  // rows a kernel may be given at a time, if they begin at a multiple of step

  Segments segments(const void* values, DType dtype, int64_t p, int64_t begin, int64_t count) const {
    return {values, dtype, col, crow + p * n + begin, order + p * order_stride + begin * order_step, count, nnz};
  }
};

// Checks everything that the text above promises; `nnz` is the number of values, `order` may be null.
PanelCsr check_panel_csr(const View& crow, const View& col, const View* order, int64_t nnz, int64_t n, int64_t k,
                         int64_t panel);

// `features` [..., size]: contiguous, at least 1-d. Returns the product of the leading sizes.
int64_t check_features(const View& features, const char* name);

// out [..., N] in x's [..., K] leading sizes and dtype, contiguous.
void check_out(const View& x, const View& out);

// [N] of any floating dtype, or nothing.
void check_bias(const View* bias, int64_t n);

// bias as float32: where it lies if it is that already, else converted into `buffer`.
const float* bias_as_float(const View* bias, float* buffer);

// Whether so few rows of activations are multiplied one at a time: faster than a tile of 16 as long as reading the
// matrix a second time is reading a cache.
inline bool row_by_row(int64_t rows, int64_t nnz) {
  constexpr int64_t kCached = int64_t{1} << 21;
  return rows == 1 || (rows == 2 && nnz <= kCached);
}

// Cuts `total` into `parts` ranges that start at multiples of `step`; returns the start of range `i`.
inline int64_t part_begin(int64_t total, int64_t parts, int64_t step, int64_t i) {
  return i == parts ? total : (total + step - 1) / step * i / parts * step;
}

// Below this many multiply-adds a second thread costs more than it saves.
constexpr int64_t kSerialWork = 100'000;

// Calls body(tile, begin, end) for every tile of 64 rows of M and a partition of [0, size), at multiples of `step`,
// that gives each thread something to do. The body returns false if it found no memory; then std::bad_alloc is thrown.
template <typename Body>
void for_each_tile(int64_t m, int64_t size, int64_t step, int64_t work, Body&& body) {
  if (m == 0) return;
  const int64_t tiles = (m + kTileRows - 1) / kTileRows;
  const int64_t threads = work < kSerialWork ? 1 : num_threads();
  const int64_t parts = tiles >= threads ? 1 : (threads + tiles - 1) / tiles;
  std::atomic<bool> ok{true};
  parallel_for(tiles * parts, threads == 1 ? tiles * parts : 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t tile = i / parts, part = i % parts;
      const int64_t from = part_begin(size, parts, step, part), to = part_begin(size, parts, step, part + 1);
      if (from < to && !body(tile, from, to)) ok = false;
    }
  });
  if (!ok) throw std::bad_alloc();
}

}  // namespace bigmodel
