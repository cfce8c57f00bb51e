#include <cmath>

#include "../common/half.h"
#include "fused_dropout_norm.h"
#include "row_slabs.h"

namespace bigmodel {
namespace {

float load(const void* p, DType dtype, int64_t i) {
  if (dtype == DType::f32) return static_cast<const float*>(p)[i];
  const uint16_t h = static_cast<const uint16_t*>(p)[i];
  return dtype == DType::bf16 ? bf16_to_float(h) : f16_to_float(h);
}

void store(void* p, DType dtype, int64_t i, float value) {
  if (dtype == DType::f32)
    static_cast<float*>(p)[i] = value;
  else
    static_cast<uint16_t*>(p)[i] = dtype == DType::bf16 ? float_to_bf16(value) : float_to_f16(value);
}

}  // namespace

// Sums in double: one after the other, they would lose more than the vector kernels' partial sums do.
void norm_rows_scalar(const NormArgs& a, int64_t begin, int64_t end, bool) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * a.features;
    double sum = 0.0, square = 0.0;
    for (int64_t c = 0; !a.rms && c < a.features; ++c) sum += load(a.h, a.dtype, at + c);
    const float mean = static_cast<float>(sum / static_cast<double>(a.features));
    for (int64_t c = 0; c < a.features; ++c) {
      const double d = load(a.h, a.dtype, at + c) - mean;
      square += d * d;
    }
    const float rstd = 1.0f / std::sqrt(static_cast<float>(square / static_cast<double>(a.features)) + a.eps);
    if (a.mean) a.mean[row] = mean;
    a.rstd[row] = rstd;
    for (int64_t c = 0; c < a.features; ++c) {
      float v = (load(a.h, a.dtype, at + c) - mean) * rstd;
      if (a.weight) v *= a.weight[c];
      if (a.norm_bias) v += a.norm_bias[c];
      store(a.y, a.dtype, at + c, v);
    }
  }
}

void norm_rows_backward_scalar(const NormArgs& a, int64_t begin, int64_t end, float* sums) {
  const double n = static_cast<double>(a.features);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * a.features;
    const float mean = a.rms ? 0.0f : a.mean[row], rstd = a.rstd[row];
    double sum = 0.0, product = 0.0;
    for (int64_t c = 0; c < a.features; ++c) {
      const float dy = load(a.grad_y, a.dtype, at + c), normal = (load(a.h, a.dtype, at + c) - mean) * rstd;
      const float g = a.weight ? dy * a.weight[c] : dy;
      sum += g;
      product += g * normal;
      sums[c] += dy * normal;
      sums[a.features + c] += dy;
    }
    const float mean_g = a.rms ? 0.0f : static_cast<float>(sum / n), mean_gn = static_cast<float>(product / n);
    for (int64_t c = 0; c < a.features; ++c) {
      const float normal = (load(a.h, a.dtype, at + c) - mean) * rstd;
      float v = load(a.grad_y, a.dtype, at + c) * (a.weight ? a.weight[c] : 1.0f);
      v = (v - mean_g - normal * mean_gn) * rstd;
      if (a.grad_h) v += load(a.grad_h, a.dtype, at + c);
      store(a.dh, a.dtype, at + c, v);
    }
  }
}

void add_rows_scalar(const void* rows, DType dtype, int64_t begin, int64_t end, int64_t features, float* sums) {
  for (int64_t c = 0; c < features; ++c) {
    float sum = 0.0f;
    for (int64_t row = begin; row < end; ++row) sum += load(rows, dtype, row * features + c);
    sums[c] += sum;
  }
}

}  // namespace bigmodel
