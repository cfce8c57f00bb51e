#include "activate_rows.h"

namespace bigmodel {
namespace {

template <Activation A>
void rows_of(float* y, int64_t rows, int64_t columns, int64_t stride, const float* bias) {
  for (int64_t r = 0; r < rows; ++r, y += stride)
    for (int64_t c = 0; c < columns; ++c) y[c] = activate<A>(bias ? y[c] + bias[r] : y[c]);
}

}  // namespace

const ActivateKernels activate_kernels_scalar = {{nullptr, rows_of<Activation::relu>, rows_of<Activation::leaky_relu>,
                                                  rows_of<Activation::gelu>, rows_of<Activation::silu>,
                                                  rows_of<Activation::sigmoid>, rows_of<Activation::tanh>,
                                                  rows_of<Activation::softplus>}};

}  // namespace bigmodel
