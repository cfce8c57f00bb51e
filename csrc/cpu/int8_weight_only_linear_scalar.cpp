#include "int8_weight_only_linear.h"

namespace bigmodel {

void float_by_int8_scalar(const FloatByInt8& p) {
  for (int64_t m = 0; m < p.rows; ++m) {
    float sums[64] = {};
    const float* x = p.x + m * p.x_stride;
    for (int64_t g = 0; g < p.groups; ++g)
      for (int64_t n = 0; n < 64; ++n)
        for (int64_t j = 0; j < 4; ++j) sums[n] += x[4 * g + j] * static_cast<float>(p.weight[(g * 64 + n) * 4 + j]);
    float* y = p.y + m * p.y_stride;
    for (int64_t n = 0; n < 64; ++n) y[n] = sums[n] * p.scale[n] + (p.bias ? p.bias[n] : -0.0f);
  }
}

}  // namespace bigmodel
