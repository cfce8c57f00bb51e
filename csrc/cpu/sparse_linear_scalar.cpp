#include "../common/half.h"
#include "sparse_linear.h"

namespace bigmodel {
namespace {

float load(const void* values, DType dtype, int64_t i) {
  if (dtype == DType::f32) return static_cast<const float*>(values)[i];
  const uint16_t h = static_cast<const uint16_t*>(values)[i];
  return dtype == DType::bf16 ? bf16_to_float(h) : f16_to_float(h);
}

void multiply(const float* x, int64_t width, const void* values, DType dtype, const uint8_t* col, const int32_t* crow,
              int64_t rows, float* y) {
  for (int64_t r = 0; r < rows; ++r, y += width) {
    for (int64_t i = crow[r]; i < crow[r + 1]; ++i) {
      const float v = load(values, dtype, i);
      const float* from = x + col[i] * width;
      for (int64_t m = 0; m < width; ++m) y[m] += v * from[m];
    }
  }
}

void multiply_row(const float* x, const void* values, DType dtype, const uint8_t* col, const int32_t* crow,
                  int64_t n_stride, int64_t panels, int64_t panel, int64_t rows, float* y) {
  for (int64_t r = 0; r < rows; ++r) y[r] = 0.0f;
  for (int64_t p = 0; p < panels; ++p, x += panel, crow += n_stride) {
    for (int64_t r = 0; r < rows; ++r) {
      float sum = 0.0f;
      for (int64_t i = crow[r]; i < crow[r + 1]; ++i) sum += load(values, dtype, i) * x[col[i]];
      y[r] += sum;
    }
  }
}

void grad_input(const float* grad, int64_t width, const void* values, DType dtype, const uint8_t* col,
                const int32_t* crow, int64_t rows, float* dx) {
  for (int64_t r = 0; r < rows; ++r, grad += width) {
    for (int64_t i = crow[r]; i < crow[r + 1]; ++i) {
      const float v = load(values, dtype, i);
      float* to = dx + col[i] * width;
      for (int64_t m = 0; m < width; ++m) to[m] += v * grad[m];
    }
  }
}

void grad_values(const float* grad, const float* x, int64_t width, const uint8_t* col, const int32_t* crow,
                 int64_t rows, bool add, float* dvalues) {
  for (int64_t r = 0; r < rows; ++r, grad += width) {
    for (int64_t i = crow[r]; i < crow[r + 1]; ++i) {
      const float* from = x + col[i] * width;
      float sum = add ? dvalues[i] : 0.0f;
      for (int64_t m = 0; m < width; ++m) sum += grad[m] * from[m];
      dvalues[i] = sum;
    }
  }
}

}  // namespace

const SparseKernels sparse_kernels_scalar = {multiply, multiply_row, grad_input, grad_values};

}  // namespace bigmodel
