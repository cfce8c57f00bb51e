// y = x W^T + bias with W in square blocks, and its gradients; csrc/cpu/block_sparse_linear.h has the formulas and the
// format. Tensors are as semi_sparse_linear.h wants them. What crow and col hold is not looked at before a launch,
// which would wait for the device: kernels leave out what is out of range.
#pragma once

#include <cstdint>

#include "../common/view.h"

namespace bigmodel {

// x [M][>= K], out [M][N]; bias float32 [N] or null.
void block_sparse_linear_cuda(const View& x, const View& values, const View& crow, const View& col, const View* bias,
                              const View& out, void* stream);
// grad [M][>= N], out [M][K]; scratch int32 [block columns][1 + 2 * block rows].
void block_sparse_linear_grad_input_cuda(const View& grad, const View& values, const View& crow, const View& col,
                                         const View& scratch, const View& out, void* stream);
// grad [M][>= N], x [M][>= K], out as values; n and k are N and K.
void block_sparse_linear_grad_values_cuda(const View& grad, const View& x, const View& crow, const View& col,
                                          const View& out, int64_t n, int64_t k, void* stream);

}  // namespace bigmodel
