// What every backend's int8 ops demand of their arguments.
#pragma once

#include <optional>

#include "view.h"

namespace bigmodel {

constexpr int64_t kInt8MaxK = 131071;  // the largest K for which 128 * 128 * K < 2^31

// x [...,K] float32, bfloat16 or float16; weight int8, [N,K] or packed [ceil(N/64), ceil(K/4) + 1, 64, 4]; weight_scale
// float32 [N]; bias [N] of any float dtype; out [...,N] in x's dtype; input_scale float32 of 0 dimensions. All
// contiguous.
void check_int8_linear(const View& x, const View& weight, const View& weight_scale, const std::optional<View>& bias,
                       const View& out, const std::optional<View>& input_scale);

// a int8 [M,K], b int8 [N,K], out int32 [M,N], all contiguous.
void check_int8_mm(const View& a, const View& b, const View& out);

// x [M,K] float32, bfloat16 or float16, q int8 [M,K], scale float32 [M], all contiguous.
void check_quantize_rows(const View& x, const View& q, const View& scale);

int64_t rows_of(const View& x);  // the product of all sizes but the last

}  // namespace bigmodel
