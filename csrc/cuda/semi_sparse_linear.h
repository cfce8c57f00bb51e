// y = x W^T + bias with two of every four weights kept, and its gradients; csrc/cpu/semi_sparse_linear.h has the
// formulas and the format, which is read as it is. All tensors are contiguous, of one device and (bias, index apart)
// one dtype; rows of x and of grad are whole multiples of 16 bytes, padded with zeros, and so their widths may be more
// than K and N, up to the next tile.
#pragma once

#include <cstdint>

#include "../common/view.h"

namespace bigmodel {

// Which tile of the output a block of threads takes: outputs x rows of activations.
enum class SemiShape { automatic, few_rows, some_rows, medium, large };

// x [M][>= K], out [M][N]; bias float32 [N] or null.
void semi_sparse_linear_cuda(const View& x, const View& values, const View& index, const View* bias, const View& out,
                             SemiShape shape, void* stream);
// grad [M][>= N], out [M][K].
void semi_sparse_linear_grad_input_cuda(const View& grad, const View& values, const View& index, const View& out,
                                        void* stream);
// grad [M][>= N], x [M][>= K], out as values; n and k are N and K.
void semi_sparse_linear_grad_values_cuda(const View& grad, const View& x, const View& index, const View& out, int64_t n,
                                         int64_t k, void* stream);

}  // namespace bigmodel
