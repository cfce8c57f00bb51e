// Between fused_dropout.cpp, which nvcc need not see, and the kernels' files.
#pragma once

#include "../common/dropout.h"
#include "guard.h"

namespace bigmodel {

struct DropoutLaunch {
  int device;
  cudaStream_t stream;
};

template <DType D>
void launch_fused_dropout(const DropoutArgs& args, bool backward, DropoutLaunch launch);
template <>
void launch_fused_dropout<DType::f32>(const DropoutArgs&, bool, DropoutLaunch);
template <>
void launch_fused_dropout<DType::bf16>(const DropoutArgs&, bool, DropoutLaunch);
template <>
void launch_fused_dropout<DType::f16>(const DropoutArgs&, bool, DropoutLaunch);

}  // namespace bigmodel
