// Between block_sparse_linear.cpp and semi_sparse_linear.cpp, which nvcc need not see, and the kernels' files.
#pragma once

#include <cstdint>

#include "../common/view.h"
#include "guard.h"

namespace bigmodel {

// out[m][width] = x[m][depth] times the stored blocks, forward (depth = K, width = N) or back (depth = N, width = K).
struct ProductArgs {
  const void* x;
  const void* values;           // [blocks][S][S], or tiles of 2:4 weights
  const uint8_t* index;         // of 2:4 weights
  const int32_t *ends, *panel;  // forward: crow and col; back: what launch_block_columns writes
  const int32_t* order;         // back: which block
  const float* bias;            // [width] or null
  void* out;
  int64_t m, depth, width;  // depth counts padding, of zeros
  int64_t blocks, list_stride;
  int64_t tile_rows, tile_columns;
  int row_blocks, column_blocks;  // of threads; set at launch
};

// dvalues of the stored blocks, or of 2:4 weights, from x [m][x_width] and grad [m][grad_width]. n, k: the weight's.
struct SampledArgs {
  const void *x, *grad;
  const int32_t *crow, *col;
  const uint8_t* index;
  void* out;
  int64_t m, n, k, x_width, grad_width;
  int64_t blocks, block_rows;
  int64_t tile_rows, tile_columns;
};

// A pattern by block column: of column c, counts[c] blocks, order[c][i] of block row row[c][i]; both [columns][rows].
struct BlockColumns {
  const int32_t *crow, *col;
  int32_t *counts, *row, *order;
  int64_t blocks, rows, columns;
};
void launch_block_columns(const BlockColumns& columns, cudaStream_t stream);

template <DType D>
struct BlockProducts {
  static void forward(const ProductArgs& args, int64_t size, cudaStream_t stream);
  static void grad_input(const ProductArgs& args, int64_t size, cudaStream_t stream);
  static void grad_values(const SampledArgs& args, int64_t size, cudaStream_t stream);
  static void semi_grad_input(const ProductArgs& args, cudaStream_t stream);
  static void semi_grad_values(const SampledArgs& args, cudaStream_t stream);
};

}  // namespace bigmodel
