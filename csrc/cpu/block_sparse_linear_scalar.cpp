#include "../common/half.h"
#include "block_sparse_linear.h"

namespace bigmodel {
namespace {

float load(const void* values, DType dtype, int64_t i) {
  if (dtype == DType::f32) return static_cast<const float*>(values)[i];
  const uint16_t h = static_cast<const uint16_t*>(values)[i];
  return dtype == DType::bf16 ? bf16_to_float(h) : f16_to_float(h);
}

void multiply(const float* x, int64_t rows, const void* blocks, DType dtype, int64_t size, const int32_t* col,
              int64_t count, bool add, float* y) {
  for (int64_t i = 0; !add && i < rows * size; ++i) y[i] = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float* from = x + col[i] * rows * size;
    for (int64_t k = 0; k < size; ++k) {
      for (int64_t n = 0; n < size; ++n) {
        const float w = load(blocks, dtype, (i * size + k) * size + n);
        for (int64_t r = 0; r < rows; ++r) y[r * size + n] += from[r * size + k] * w;
      }
    }
  }
}

void grad_values(const float* x, const float* grad, int64_t rows, int64_t size, bool add, float* dblock) {
  for (int64_t i = 0; !add && i < size * size; ++i) dblock[i] = 0.0f;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < size; ++k)
      for (int64_t n = 0; n < size; ++n) dblock[k * size + n] += x[r * size + k] * grad[r * size + n];
}

}  // namespace

const BlockKernels block_kernels_scalar = {multiply, grad_values};

}  // namespace bigmodel
