// out[m,n] = sum_k a[m,k] * b[n,k], exact in int32 over the full range [-128, 127].
#pragma once

#include "../common/view.h"

namespace bigmodel {

// Checks its arguments, then runs over torch's threads. a int8 [M,K], b int8 [N,K], out int32 [M,N], all contiguous.
void int8_mm(const View& a, const View& b, const View& out);

}  // namespace bigmodel
