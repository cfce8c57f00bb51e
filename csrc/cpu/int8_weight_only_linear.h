// out[m,n] = round(act((sum_k x[m,k] * weight[n,k]) * weight_scale[n] + bias[n])): int8 weights, float activations. The
// sum is float32 (fused where the processor can), the last rounding is to x's dtype. NaN and infinity go where float
// arithmetic takes them.
#pragma once

#include <cstdint>
#include <optional>

#include "../common/view.h"

namespace bigmodel {

// Some rows by one panel of 64 outputs.
struct FloatByInt8 {
  const float* x;  // [rows, x_stride], 4 * groups columns of which are read
  int64_t x_stride, rows, groups;
  const int8_t* weight;       // [groups, 64, 4] (see formats/int8.py)
  const float *scale, *bias;  // [64]; bias may be null
  float* y;                   // [rows, y_stride], 64 columns of which are written
  int64_t y_stride;
};
using FloatByInt8Kernel = void (*)(const FloatByInt8&);

void float_by_int8_scalar(const FloatByInt8&);
void float_by_int8_avx2(const FloatByInt8&);
void float_by_int8_avx512(const FloatByInt8&);

// Checks its arguments, then runs over torch's threads. x [...,K] float32, bfloat16 or float16; weight int8 packed
// [ceil(N/64), ceil(K/4) + 1, 64, 4]; weight_scale float32 [N]; bias [N] of any float dtype; out [...,N] in x's dtype;
// activation by the name fused_dropout has for it. All contiguous.
void int8_weight_only_linear(const View& x, const View& weight, const View& weight_scale,
                             const std::optional<View>& bias, const View& out, const char* activation);

}  // namespace bigmodel
