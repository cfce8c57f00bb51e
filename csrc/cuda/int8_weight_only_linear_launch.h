// Between int8_weight_only_linear.cpp, which nvcc need not see, and the kernels' files.
#pragma once

#include "guard.h"
#include "int8_weight_only_linear.h"

namespace bigmodel {

template <DType D>
void launch_int8_weight_only(const LinearArgs& args, const int8_t* weight, const float* weight_scale,
                             cudaStream_t stream);
template <>
void launch_int8_weight_only<DType::f32>(const LinearArgs&, const int8_t*, const float*, cudaStream_t);
template <>
void launch_int8_weight_only<DType::bf16>(const LinearArgs&, const int8_t*, const float*, cudaStream_t);
template <>
void launch_int8_weight_only<DType::f16>(const LinearArgs&, const int8_t*, const float*, cudaStream_t);

}  // namespace bigmodel
