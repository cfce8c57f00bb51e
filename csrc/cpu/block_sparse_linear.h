// y[m,n] = sum over stored (n,k) of x[m,k] * W[n,k], + bias[n]; sums in float32, one rounding to x's dtype.
// W is stored in square blocks of S in {16, 32, 64}, block row by block row:
//
//   values [blocks][S][S]           block i's W[n,k] is values[i][k - k0][n - n0]: inputs outside, outputs side by side
//   crow   int32 [ceil(N/S) + 1]    where block row r begins: crow[r]
//   col    int32 [blocks]           block column
//
// Values are float32 or of x's dtype. What a block holds beyond N or K is multiplied with zeros or thrown away. The two
// gradients:
//
//   dx[m,k] = sum over stored (n,k) of grad[m,n] * W[n,k]
//   dvalues[i][k - k0][n - n0] = sum_m x[m,k] * grad[m,n];   0 beyond N and K
//
// A product with a stored weight follows IEEE 754, so a stored 0 times NaN is NaN; what is not stored sees nothing.
//
// Inside a block this is a dense product: up to 24 sums of one vector of outputs stay in registers over all of a block
// row, each element of x (row_panels.h) is broadcast and multiplied with S/16 (or 2) vectors of the block.
//
// The same result for any number of threads: threads share rows of x and block rows, never one sum.
#pragma once

#include <cstdint>

#include "../common/view.h"

namespace bigmodel {

// `rows` is 1, 2, 3 or a multiple of 4; x and grad are row panels of `size` columns.
struct BlockKernels {
  // y [rows][size] (+)= sum over i < count of panel col[i] of x times block i.
  void (*multiply)(const float* x, int64_t rows, const void* blocks, DType dtype, int64_t size, const int32_t* col,
                   int64_t count, bool add, float* y);

  // dblock [size][size] (+)= one panel of x, transposed, times one of grad.
  void (*grad_values)(const float* x, const float* grad, int64_t rows, int64_t size, bool add, float* dblock);
};

extern const BlockKernels block_kernels_scalar, block_kernels_avx2, block_kernels_avx512;

const BlockKernels& block_kernels();  // the active instruction set's

// x [..., K], out [..., N], grad [..., N]; bias may be null.
void block_sparse_linear(const View& x, const View& values, const View& crow, const View& col, const View* bias,
                         const View& out);
void block_sparse_linear_grad_input(const View& grad, const View& values, const View& crow, const View& col,
                                    const View& out);
void block_sparse_linear_grad_values(const View& grad, const View& x, const View& crow, const View& col,
                                     const View& out);

}  // namespace bigmodel
