// y[m,n] = act((sum over stored blocks of q[m,k..k+3] . W[n,k..k+3]) * scale[m] * weight_scale[n], + bias[n])
//
// with q, scale from quantize_rows.h. W is int8 in blocks of 1x4, in the layout of panel_csr.h over blocks. Activations
// are stored as the unsigned q + 128, four of a block in one 32-bit word, and the words are laid out as a tile
// (tiles.h); what that adds to each sum, 128 * row_sum[n], is subtracted again. All of it is arithmetic modulo 2^32
// whose true result fits int32 (K <= 131071), so it is exact. After that: one float32 multiplication by scale[m], one
// by weight_scale[n], one addition of bias[n], the activation, one rounding to x's dtype: bit for bit as int8_linear.
//
// A row of x with NaN or infinity has scale NaN and becomes NaN throughout.
#pragma once

#include <cstdint>

#include "../common/view.h"
#include "segments.h"

namespace bigmodel {

using Int8SparseRowKernel = void (*)(const uint32_t* x, const Segments& w, int64_t n_stride, int64_t order_stride,
                                     int64_t panels, int64_t panel, uint32_t* y);
void int8_sparse_row_avx512vbmi(const uint32_t*, const Segments&, int64_t, int64_t, int64_t, int64_t, uint32_t*);

// One thread's share each; x holds words of four unsigned activations, w.values (4 bytes each) words of four signed
// weights. The rest as in sparse_linear.h.
struct Int8SparseKernels {
  // y [512][width] += W's panel times x, the panel's tile [256][width]; modulo 2^32.
  void (*multiply)(const uint32_t* x, int64_t width, const Segments& w, uint32_t* y);

  // y [rows] = W times one row x [panels * panel + 256].
  Int8SparseRowKernel multiply_row;

  // In place, y [rows][width]: int32 sums -> float (sum - 128 * row_sum[row]) * scale[lane] * weight_scale[row].
  void (*scale)(uint32_t* y, int64_t width, int64_t rows, const int32_t* row_sum, const float* scale,
                const float* weight_scale);
};

extern const Int8SparseKernels int8_sparse_kernels_scalar, int8_sparse_kernels_avx2, int8_sparse_kernels_avx512vnni;

constexpr int64_t kInt8MaxK = 131071;  // beyond it a sum of products may leave int32

// x [..., K], values int8 [blocks, 4], weight_scale float32 [N], row_sum int32 [N], out [..., N]; bias and
// order may be null.
void int8_sparse_linear(const View& x, const View& values, const View& crow, const View& col, const View* order,
                        const View& weight_scale, const View& row_sum, const View* bias, const View& out, int64_t panel,
                        const char* activation);

}  // namespace bigmodel
