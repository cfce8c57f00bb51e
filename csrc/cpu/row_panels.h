// Row panels: some rows of a row-major matrix cut into panels of `size` columns, float32, each panel contiguous: float
// [ceil(columns / size)][padded][size]. What lies outside the matrix is 0. No transposition: a kernel broadcasts single
// elements of a panel and multiplies them with vectors of weights. Nor do rows lie a power of two apart, as they do in
// many a matrix, where they would compete for a few places of the cache.
#pragma once

#include <atomic>
#include <cstdint>
#include <new>

#include "../common/parallel.h"
#include "../common/view.h"

namespace bigmodel {

constexpr int64_t kRowsAtOnce = 128;  // rows of activations between two readings of the weights

// One to three rows as they are, else a multiple of 4: kernels exist for so many rows.
inline int64_t padded_rows(int64_t rows) { return rows < 4 ? rows : (rows + 3) / 4 * 4; }

struct RowPanelKernels {
  // x [rows][columns] of dtype (float32, bfloat16, float16), `stride` elements between rows -> panels.
  void (*pack)(const void* x, DType dtype, int64_t stride, int64_t rows, int64_t columns, int64_t size, int64_t padded,
               float* panels);

  // out[row][column] = y[row][column] + bias[column], rounded once to dtype; y [rows][size], bias may be null.
  void (*unpack)(const float* y, int64_t rows, int64_t columns, int64_t size, const float* bias, void* out, DType dtype,
                 int64_t stride);
};

extern const RowPanelKernels row_panel_kernels_scalar, row_panel_kernels_avx2, row_panel_kernels_avx512;

const RowPanelKernels& row_panel_kernels();  // the active instruction set's

inline int64_t panels_for(int64_t columns, int64_t size) { return columns / size + (columns % size != 0); }

// Row panels of rows [first, first + rows) of x [..., columns], columns [begin, end), in this thread's scratch memory;
// null if there is none.
float* packed_rows(int slot, const View& x, int64_t first, int64_t rows, int64_t begin, int64_t end, int64_t size);

// y [rows][size] + bias to columns [index * size, ...) of rows [first, first + rows) of out.
void unpack_rows(const float* y, int64_t first, int64_t rows, int64_t index, int64_t size, const float* bias,
                 const View& out);

// Values are float32, or of the dtype of the activations (x or grad), which is a floating one.
void check_weight_dtype(const View& values, const View& activations, const char* activations_name);

// Calls body(first, rows, part, parts) for every kRowsAtOnce rows of M and each of so many parts of the other dimension
// that every thread has something to do. The body returns false if it found no memory; then std::bad_alloc is thrown.
template <typename Body>
void for_each_rows(int64_t m, int64_t work, Body&& body) {
  constexpr int64_t kSerialWork = 100'000;  // below so many multiply-adds a second thread costs more than it saves
  if (m == 0) return;
  const int64_t tiles = (m + kRowsAtOnce - 1) / kRowsAtOnce;
  const int64_t threads = work < kSerialWork ? 1 : num_threads();
  const int64_t parts = tiles >= threads ? 1 : (threads + tiles - 1) / tiles;
  std::atomic<bool> ok{true};
  parallel_for(tiles * parts, threads == 1 ? tiles * parts : 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / parts * kRowsAtOnce, rows = m - first < kRowsAtOnce ? m - first : kRowsAtOnce;
      if (!body(first, rows, i % parts, parts)) ok = false;
    }
  });
  if (!ok) throw std::bad_alloc();
}

}  // namespace bigmodel
