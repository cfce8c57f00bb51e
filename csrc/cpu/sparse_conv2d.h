// y[b,n,p] = sum over stored (n,k) of x's element k of the window of output pixel p * W[n,k], + bias[n]; sums in
// float32, one rounding to x's dtype. W [N,K] is in the layout of panel_csr.h with K = Cg * kh * kw, the window's last
// dimension fastest (a weight [N,Cg,kh,kw] flattened), and float32 values or values of x's dtype.
//
// The product is sparse_linear's, on tiles of 64 output pixels. A tile's panel of columns is taken out of x's planes
// just before it is multiplied with all outputs, so that it is in the first-level cache and the matrix of windows never
// exists. Sums lie as the planes of the output do.
//
// The same result for any number of threads: threads share tiles and outputs, never one sum.
#pragma once

#include "conv2d.h"

namespace bigmodel {

// x [B,C,H,W] and out [B,N,OH,OW] of one float dtype, both contiguous or both channels last; bias may be null.
void sparse_conv2d(const View& x, const View& values, const View& crow, const View& col, const View* bias,
                   const View& out, const ConvWindow& window, int64_t panel, bool channels_last);

}  // namespace bigmodel
