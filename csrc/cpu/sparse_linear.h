// y[m,n] = act(sum over stored (n,k) of x[m,k] * W[n,k], + bias[n]); sums in float32, one rounding to x's dtype.
// W is in the layout of panel_csr.h with float32 values, or values of x's dtype. The two gradients:
//
//   dx[m,k] = sum over stored (n,k) of grad[m,n] * W[n,k]
//   dvalues[i] = sum_m grad[m, n_i] * x[m, k_i]               for stored entry i = (n_i, k_i)
//
// A product with a stored entry follows IEEE 754, so a stored 0 times NaN is NaN; what is not stored sees nothing.
//
// The sparse matrix is the left operand: an entry is one number broadcast, multiplied with that column of up to 64
// rows of activations (a tile, transposed; tiles.h) and added to the 64 sums of its row, which stay in registers. A
// panel's tile is at most 128 x 64 floats = 32 KiB by default: it stays in the first-level cache while the panel's
// entries stream past it once.
//
// The same result for any number of threads: threads share tiles, rows or panels, never one sum.
#pragma once

#include <cstdint>

#include "../common/view.h"
#include "segments.h"

namespace bigmodel {

using SparseRowKernel = void (*)(const float* x, const Segments& w, int64_t n_stride, int64_t order_stride,
                                 int64_t panels, int64_t panel, float* y);
void sparse_row_avx512vbmi(const float*, const Segments&, int64_t, int64_t, int64_t, int64_t, float*);

// One thread's share each: a block of rows of one panel. A panel's tile has 256 accessible columns, width as in
// tiles.h; arrays [512] hold a row for each that an order can name.
struct SparseKernels {
  // y [512][width] += W's panel times x, the panel's tile [256][width].
  void (*multiply)(const float* x, int64_t width, const Segments& w, float* y);

  // y [rows] = W times one row x [panels * panel + 256], over all panels: those after the one that w describes have
  // their crow and order n_stride and order_stride further on.
  SparseRowKernel multiply_row;

  // dx [256][width] += W's panel, transposed, times grad [512][width].
  void (*grad_input)(const float* grad, int64_t width, const Segments& w, float* dx);

  // dvalues[i] (+)= grad's row times x's column, for the entries i of the segments; `add` says whether to add. Reads
  // neither w.values nor w.dtype.
  void (*grad_values)(const float* grad, const float* x, int64_t width, const Segments& w, bool add, float* dvalues);
};

extern const SparseKernels sparse_kernels_scalar, sparse_kernels_avx2, sparse_kernels_avx512;

// x [..., K], out [..., N], grad [..., N]; bias and order may be null.
void sparse_linear(const View& x, const View& values, const View& crow, const View& col, const View* order,
                   const View* bias, const View& out, int64_t panel, const char* activation);
void sparse_linear_grad_input(const View& grad, const View& values, const View& crow, const View& col,
                              const View* order, const View& out, int64_t panel);
void sparse_linear_grad_values(const View& grad, const View& x, const View& crow, const View& col, const View* order,
                               const View& out, int64_t panel);

}  // namespace bigmodel
