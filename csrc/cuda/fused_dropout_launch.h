// Between fused_dropout.cpp, which nvcc need not see, and the kernels' files.
#pragma once

#include <cuda_runtime_api.h>

#include "../common/dropout.h"

namespace bigmodel {

struct DropoutLaunch {
  int device;
  cudaStream_t stream;
};

template <DType D>
cudaError_t launch_fused_dropout(const DropoutArgs& args, bool backward, DropoutLaunch launch);
template <>
cudaError_t launch_fused_dropout<DType::f32>(const DropoutArgs&, bool, DropoutLaunch);
template <>
cudaError_t launch_fused_dropout<DType::bf16>(const DropoutArgs&, bool, DropoutLaunch);
template <>
cudaError_t launch_fused_dropout<DType::f16>(const DropoutArgs&, bool, DropoutLaunch);

}  // namespace bigmodel
