// out[m,n] = round(act(float(sum_k q[m,k] * weight[n,k]) * scale[m] * weight_scale[n] + bias[n])), with q and scale
// those of quantize_rows(x), or of the one scale that is given (see quantize_rows.h). The sum is exact in int32; each
// float32 operation rounds once, in this order; the last rounding is to x's dtype.
#pragma once

#include <optional>

#include "../common/view.h"

namespace bigmodel {

// Checks its arguments, then runs over torch's threads. x [...,K] float32, bfloat16 or float16; weight int8, [N,K] or
// packed [ceil(N/64), ceil(K/4) + 1, 64, 4]; weight_scale float32 [N]; bias [N] of any float dtype; out [...,N] in x's
// dtype; activation by the name fused_dropout has for it; input_scale float32 of 0 dimensions. All contiguous.
void int8_linear(const View& x, const View& weight, const View& weight_scale, const std::optional<View>& bias,
                 const View& out, const char* activation, const std::optional<View>& input_scale);

}  // namespace bigmodel
