#include <cstring>

#include "int8_sparse_linear.h"

namespace bigmodel {
namespace {

uint32_t dot4(uint32_t x, const int8_t* w) {
  int32_t sum = 0;
  for (int j = 0; j < 4; ++j) sum += static_cast<int32_t>((x >> (8 * j)) & 255u) * w[j];
  return static_cast<uint32_t>(sum);
}

const int8_t* block(const Segments& w, int64_t i) { return static_cast<const int8_t*>(w.values) + i * 4; }

void multiply(const uint32_t* x, int64_t width, const Segments& w, uint32_t* y) {
  for (int64_t s = 0; s < w.count; ++s) {
    uint32_t* to = y + (w.order[s] & (kBlockRows - 1)) * width;
    for (int64_t i = w.crow[s]; i < w.crow[s + 1]; ++i) {
      const uint32_t* from = x + w.col[i] * width;
      for (int64_t m = 0; m < width; ++m) to[m] += dot4(from[m], block(w, i));
    }
  }
}

void multiply_row(const uint32_t* x, const Segments& w, int64_t n_stride, int64_t order_stride, int64_t panels,
                  int64_t panel, uint32_t* y) {
  uint32_t sums[kBlockRows] = {};
  const int32_t* crow = w.crow;
  const int32_t* order = w.order;
  for (int64_t p = 0; p < panels; ++p, x += panel, crow += n_stride, order += order_stride)
    for (int64_t s = 0; s < w.count; ++s)
      for (int64_t i = crow[s]; i < crow[s + 1]; ++i)
        sums[order[s] & (kBlockRows - 1)] += dot4(x[w.col[i]], block(w, i));
  for (int64_t r = 0; r < w.count; ++r) y[r] = sums[r];
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
