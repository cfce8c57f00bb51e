#include <cstring>

#include "int8_sparse_linear.h"

namespace bigmodel {
namespace {

uint32_t dot4(uint32_t x, const int8_t* w) {
  int32_t sum = 0;
  for (int j = 0; j < 4; ++j) sum += static_cast<int32_t>((x >> (8 * j)) & 255u) * w[j];
  return static_cast<uint32_t>(sum);
}

void multiply(const uint32_t* x, int64_t width, const int8_t* values, const uint8_t* col, const int32_t* crow,
              int64_t rows, uint32_t* y) {
  for (int64_t r = 0; r < rows; ++r, y += width) {
    for (int64_t i = crow[r]; i < crow[r + 1]; ++i) {
      const uint32_t* from = x + col[i] * width;
      for (int64_t m = 0; m < width; ++m) y[m] += dot4(from[m], values + i * 4);
    }
  }
}

void multiply_row(const uint32_t* x, const int8_t* values, const uint8_t* col, const int32_t* crow, int64_t n_stride,
                  int64_t panels, int64_t panel, int64_t rows, uint32_t* y) {
  for (int64_t r = 0; r < rows; ++r) y[r] = 0;
  for (int64_t p = 0; p < panels; ++p, x += panel, crow += n_stride) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = crow[r]; i < crow[r + 1]; ++i) y[r] += dot4(x[col[i]], values + i * 4);
  }
}

void scale(uint32_t* y, int64_t width, int64_t rows, const int32_t* row_sum, const float* scale,
           const float* weight_scale) {
  for (int64_t r = 0; r < rows; ++r, y += width) {
    const uint32_t excess = 128u * static_cast<uint32_t>(row_sum[r]);
    for (int64_t m = 0; m < width; ++m) {
      const float scaled = static_cast<float>(static_cast<int32_t>(y[m] - excess)) * scale[m] * weight_scale[r];
      std::memcpy(y + m, &scaled, 4);
    }
  }
}

}  // namespace

const Int8SparseKernels int8_sparse_kernels_scalar = {multiply, multiply_row, scale};

}  // namespace bigmodel
