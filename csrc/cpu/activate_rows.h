// The last step of a linear layer's epilogue: an activation, in place, on float32 results that are still in the
// first-level cache. Shares its arithmetic with fused dropout (activation.h, activation_vector.h).
#pragma once

#include <cstdint>

#include "../common/activation.h"

namespace bigmodel {

// y[r][c] = act(y[r][c] + bias[r]) for `rows` rows of `columns` (a multiple of 16) floats, `stride` apart; bias may be
// null. What a value becomes does not depend on where it stands.
using ActivateRows = void (*)(float* y, int64_t rows, int64_t columns, int64_t stride, const float* bias);

struct ActivateKernels {
  ActivateRows kernels[kActivationCount];  // by Activation; null for none
};

extern const ActivateKernels activate_kernels_scalar, activate_kernels_avx2, activate_kernels_avx512;

// The active instruction set's kernel of an activation by name; null for "none". Throws for other names.
ActivateRows activate_rows(const char* activation);

}  // namespace bigmodel
