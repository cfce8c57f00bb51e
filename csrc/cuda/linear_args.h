// What linear layers with compressed weights have in common on CUDA devices.
#pragma once

#include "../common/activation.h"
#include "../common/view.h"

namespace bigmodel {

struct LinearArgs {
  const void* x;     // [m, k]
  const void* bias;  // [n], float32 or x's dtype; may be null
  void* out;         // [m, n]
  int64_t m, n, k;
  DType dtype;  // of x and out: float32, bfloat16 or float16
  DType bias_dtype;
  Activation activation;
};

}  // namespace bigmodel
