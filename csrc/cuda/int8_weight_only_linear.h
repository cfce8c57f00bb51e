// int8_weight_only_linear on CUDA devices: out = round(act((sum_k x[m,k] * weight[n,k]) * weight_scale[n] + bias[n])),
// as cpu/int8_weight_only_linear.h has it. Products are exact and sums float32, on the tensor cores; where x is float32
// it is the sum of three bfloat16 numbers, each of which is multiplied.
#pragma once

#include "linear_args.h"

namespace bigmodel {

// weight: int8 packed [ceil(N/64), ceil(K/4) + 1, 64, 4] (formats/int8.py); weight_scale float32 [N]. Enqueues on
// `stream` of `device`; throws std::runtime_error if the launch fails.
void int8_weight_only_linear_cuda(const LinearArgs& args, const int8_t* weight, const float* weight_scale, int device,
                                  void* stream);

}  // namespace bigmodel
