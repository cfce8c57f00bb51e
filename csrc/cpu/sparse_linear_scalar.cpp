#include "../common/half.h"
#include "sparse_linear.h"

namespace bigmodel {
namespace {

float load(const void* values, DType dtype, int64_t i) {
  if (dtype == DType::f32) return static_cast<const float*>(values)[i];
  const uint16_t h = static_cast<const uint16_t*>(values)[i];
  return dtype == DType::bf16 ? bf16_to_float(h) : f16_to_float(h);
}

int64_t row_of(const Segments& w, int64_t s) { return w.order[s] & (kBlockRows - 1); }

void multiply(const float* x, int64_t width, const Segments& w, float* y) {
  for (int64_t s = 0; s < w.count; ++s) {
    float* to = y + row_of(w, s) * width;
    for (int64_t i = w.crow[s]; i < w.crow[s + 1]; ++i) {
      const float v = load(w.values, w.dtype, i);
      const float* from = x + w.col[i] * width;
      for (int64_t m = 0; m < width; ++m) to[m] += v * from[m];
    }
  }
}

void multiply_row(const float* x, const Segments& w, int64_t n_stride, int64_t order_stride, int64_t panels,
                  int64_t panel, float* y) {
  float sums[kBlockRows] = {};
  const int32_t* crow = w.crow;
  const int32_t* order = w.order;
  for (int64_t p = 0; p < panels; ++p, x += panel, crow += n_stride, order += order_stride) {
    for (int64_t s = 0; s < w.count; ++s) {
      float sum = 0.0f;
      for (int64_t i = crow[s]; i < crow[s + 1]; ++i) sum += load(w.values, w.dtype, i) * x[w.col[i]];
      sums[order[s] & (kBlockRows - 1)] += sum;
    }
  }
  for (int64_t r = 0; r < w.count; ++r) y[r] = sums[r];
}

void grad_input(const float* grad, int64_t width, const Segments& w, float* dx) {
  for (int64_t s = 0; s < w.count; ++s) {
    const float* g = grad + row_of(w, s) * width;
    for (int64_t i = w.crow[s]; i < w.crow[s + 1]; ++i) {
      const float v = load(w.values, w.dtype, i);
      float* to = dx + w.col[i] * width;
      for (int64_t m = 0; m < width; ++m) to[m] += v * g[m];
    }
  }
}

void grad_values(const float* grad, const float* x, int64_t width, const Segments& w, bool add, float* dvalues) {
  for (int64_t s = 0; s < w.count; ++s) {
    const float* g = grad + row_of(w, s) * width;
    for (int64_t i = w.crow[s]; i < w.crow[s + 1]; ++i) {
      const float* from = x + w.col[i] * width;
      float sum = add ? dvalues[i] : 0.0f;
      for (int64_t m = 0; m < width; ++m) sum += g[m] * from[m];
      dvalues[i] = sum;
    }
  }
}

}  // namespace

const SparseKernels sparse_kernels_scalar = {multiply, multiply_row, grad_input, grad_values};

}  // namespace bigmodel
