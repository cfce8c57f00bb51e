// y[m,n] = sum over stored (n,k) of x[m,k] * W[n,k], + bias[n]; sums in float32, one rounding to x's dtype.
// W holds two of every four neighbouring weights of a row (2:4), in tiles of 32 outputs by 32 inputs (8 groups of 4):
//
//   values [ceil(N/32)][ceil(K/32)][8][2][32]   group, first or second of it, output: outputs lie side by side
//   index  uint8 [ceil(N/32)][ceil(K/32)][32][4]  an output's 4 bytes, little-endian: 2 bits for each of its 16 values,
//                                               group by group, the position within the group
//
// Values are float32 or of x's dtype; those beyond N or K are multiplied with zeros or thrown away. The gradients:
//
//   dx[m,k] = sum over stored (n,k) of grad[m,n] * W[n,k]
//   dvalues[i] = sum_m x[m,k_i] * grad[m,n_i];   0 beyond N and K
//
// A product with a stored weight follows IEEE 754, so a stored 0 times NaN is NaN; what is not stored sees nothing.
//
// A vector of outputs has 16 positions for a group: the group's four inputs are broadcast to every quarter of a
// register and each lane takes its own (the permutation looks at 2 bits of the index word and no more, so that the word
// needs only be shifted by 2 from value to value). That is half the multiply-adds of a dense product.
//
// The same result for any number of threads: threads share rows of x and tiles, never one sum.
#pragma once

#include <cstdint>

#include "../common/view.h"

namespace bigmodel {

constexpr int64_t kSemiTile = 32;                             // outputs, and inputs, of a tile
constexpr int64_t kSemiGroups = kSemiTile / 4;                // of inputs
constexpr int64_t kSemiValues = kSemiGroups * 2 * kSemiTile;  // of a tile
constexpr int64_t kSemiIndexBytes = kSemiTile * kSemiGroups * 2 * 2 / 8;

// `rows` is 1, 2, 3 or a multiple of 4; x and grad are row panels of 32 columns.
struct SemiKernels {
  // y [rows][32] (+)= sum over i < count of panel i of x times tile i.
  void (*multiply)(const float* x, int64_t rows, const void* values, DType dtype, const uint8_t* index, int64_t count,
                   bool add, float* y);

  // One tile, dense: float32 [32 inputs][32 outputs].
  void (*expand)(const void* values, DType dtype, const uint8_t* index, float* dense);

  // dvalues [8][2][32] (+)= one panel of x, where the tile's index says, times one of grad.
  void (*grad_values)(const float* x, const float* grad, int64_t rows, const uint8_t* index, bool add, float* dvalues);
};

extern const SemiKernels semi_kernels_scalar, semi_kernels_avx2, semi_kernels_avx512;

// x [..., K], out [..., N], grad [..., N]; bias may be null.
void semi_sparse_linear(const View& x, const View& values, const View& index, const View* bias, const View& out);
void semi_sparse_linear_grad_input(const View& grad, const View& values, const View& index, const View& out);
void semi_sparse_linear_grad_values(const View& grad, const View& x, const View& index, const View& out);

}  // namespace bigmodel
