// out[m,n] = round(act(z[m,n] * scale[m] + bias[n])), with q and scale those of quantize_rows(x), and
//
//   z[m,n] = sum_g sum_b alpha[n,g,b] * float(sum_{k in group g} s[n,b,k] * q[m,k])        s in {-1, +1}
//
// The inner sums are exact integers below 2^24. Each float32 operation rounds once, none is fused, and the products are
// added one after the other from 0 on, first over the planes b of group 0, then of group 1, and so on. The last
// rounding is to x's dtype.
#pragma once

#include <optional>

#include "../common/view.h"

namespace bigmodel {

// Checks its arguments, then runs over torch's threads. x [...,K] float32, bfloat16 or float16, K <= 131071; packed
// uint8 [ceil(N/64), words, bits, 64, 2] and scales float16 [ceil(N/64), ceil(K/group_size), bits, 64] as in
// formats/binary_coded.py; bias [N] of any float dtype; out [...,N] in x's dtype; activation by the name fused_dropout
// has for it. All contiguous.
void binary_coded_linear(const View& x, const View& packed, const View& scales, const std::optional<View>& bias,
                         const View& out, int64_t group_size, const char* activation);

}  // namespace bigmodel
