// out[b,n,p] = round(float(sum_k q[b,p,k] * weight[n,k]) * scale[b] * weight_scale[n] + bias[n]), where q and scale are
// those of quantize_rows over each whole image and k runs over the kernel window and the group's channels, channels
// fastest. Padding is exactly 0. The sum is exact in int32; each float32 operation rounds once, in this order; the last
// rounding is to x's dtype.
//
// One scale for an image rather than one for each window: quantized once, a pixel serves all the windows it is part of,
// and the result does not depend on how the window is walked.
#pragma once

#include <optional>

#include "conv2d.h"

namespace bigmodel {

// Checks its arguments, then runs over torch's threads. x [B,C,H,W] and out [B,N,OH,OW] of one float dtype, both
// contiguous or both channels last; weight int8, [groups, ceil(Ng/64), ceil(K/4) + 1, 64, 4] packed, or [N,K] (packed
// in the call; for groups of few outputs, whose panels would be mostly padding); weight_scale float32 [N]; bias [N] of
// any float dtype.
void int8_conv2d(const View& x, const View& weight, const View& weight_scale, const std::optional<View>& bias,
                 const View& out, const ConvWindow& window, bool channels_last);

}  // namespace bigmodel
