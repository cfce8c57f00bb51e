// int8_linear (csrc/cpu/int8_linear.h) with two of every four weights kept:
//
//   values int8 [ceil(N/32)][ceil(K/32)][32][16]    tiles of 32 outputs by 32 inputs: output, its stored weights
//   index  uint8 [ceil(N/32)][ceil(K/32)][32][4]    their positions, as csrc/cpu/semi_sparse_linear.h has them
//
// Equal to int8_linear on the same weights bit for bit: sums are exact, and what becomes of them is the same code.
#pragma once

#include "semi_sparse_linear.h"

namespace bigmodel {

// x [M][K] of any float dtype, weight_scale float32 [N], bias float32, bfloat16 or float16 [N] or null, out [M][N] in
// x's dtype; q int8 [M][K rounded up to 16] and scale float32 [M] are scratch. All contiguous, on one device.
void int8_semi_sparse_linear_cuda(const View& x, const View& values, const View& index, const View& weight_scale,
                                  const View* bias, const View& out, const char* activation, const View& q,
                                  const View& scale, SemiShape shape, void* stream);

}  // namespace bigmodel
