#include <cmath>
#include <cstring>
#include <limits>

#include "../common/half.h"
#include "quantize_rows.h"

namespace bigmodel {
namespace {

float load(const void* x, DType dtype, int64_t i) {
  if (dtype == DType::f32) return static_cast<const float*>(x)[i];
  const uint16_t h = static_cast<const uint16_t*>(x)[i];
  return dtype == DType::bf16 ? bf16_to_float(h) : f16_to_float(h);
}

}  // namespace

void quantize_rows_scalar(const void* x, DType dtype, int64_t rows, int64_t k, int64_t x_stride, uint8_t* q,
                          int64_t q_stride, int zero_point, float* scale) {
  for (int64_t m = 0; m < rows; ++m, q += q_stride) {
    const int64_t row = m * x_stride;
    float absmax = 0.0f;
    bool finite = true;
    for (int64_t i = 0; i < k; ++i) {
      const float a = std::fabs(load(x, dtype, row + i));
      finite &= a <= std::numeric_limits<float>::max();  // false for NaN too
      absmax = a > absmax ? a : absmax;
    }
    if (!finite || absmax < kSmallestQuantizable) {
      scale[m] = finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
      std::memset(q, zero_point, static_cast<size_t>(q_stride));
      continue;
    }
    scale[m] = absmax / 127.0f;
    const float inverse = 127.0f / absmax;
    for (int64_t i = 0; i < k; ++i)
      q[i] = static_cast<uint8_t>(static_cast<int>(std::nearbyintf(load(x, dtype, row + i) * inverse)) + zero_point);
    if (q_stride > k) std::memset(q + k, zero_point, static_cast<size_t>(q_stride - k));
  }
}

void quantize_fixed_scalar(const void* x, DType dtype, int64_t rows, int64_t k, int64_t x_stride, uint8_t* q,
                           int64_t q_stride, int zero_point, FixedScale fixed, float* scale) {
  for (int64_t m = 0; m < rows; ++m, q += q_stride) {
    bool finite = true;
    for (int64_t i = 0; i < k; ++i) {
      const float value = load(x, dtype, m * x_stride + i), scaled = value * fixed.inverse;
      finite &= std::fabs(value) <= std::numeric_limits<float>::max();
      const float above = scaled > -127.0f ? scaled : -127.0f;  // NaN becomes a number, as in the vector kernels
      q[i] = static_cast<uint8_t>(static_cast<int>(std::nearbyintf(above < 127.0f ? above : 127.0f)) + zero_point);
    }
    scale[m] = finite ? fixed.scale : std::numeric_limits<float>::quiet_NaN();
    if (q_stride > k) std::memset(q + k, zero_point, static_cast<size_t>(q_stride - k));
  }
}

}  // namespace bigmodel
