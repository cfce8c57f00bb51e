// Between semi_sparse_linear.cpp, which nvcc need not see, and the kernels' files.
#pragma once

#include "guard.h"
#include "int8_product.h"
#include "semi_sparse_linear.h"

namespace bigmodel {

struct SemiArgs {
  const void* x;         // [m][k]
  const void* values;    // [tile_rows][tile_columns][8][2][32]; int8: [..][..][32][16]
  const uint8_t* index;  // [tile_rows][tile_columns][32][4]
  const float* bias;     // [n] or null
  void* out;             // [m][n]
  int64_t m, n, k;       // k counts padding, of zeros
  int64_t tile_rows, tile_columns;
  int row_blocks, output_blocks;  // of threads; set at launch
};

template <DType D>
void launch_semi_sparse_linear(const SemiArgs& args, SemiShape shape, int device, cudaStream_t stream);
template <>
void launch_semi_sparse_linear<DType::f32>(const SemiArgs&, SemiShape, int, cudaStream_t);
template <>
void launch_semi_sparse_linear<DType::bf16>(const SemiArgs&, SemiShape, int, cudaStream_t);
template <>
void launch_semi_sparse_linear<DType::f16>(const SemiArgs&, SemiShape, int, cudaStream_t);

// x are rows of int8, each with a scale in `result`; bias and out are in `result` too.
void launch_int8_semi_sparse_linear(const SemiArgs& args, const Int8Result& result, SemiShape shape, int device,
                                    cudaStream_t stream);

}  // namespace bigmodel
