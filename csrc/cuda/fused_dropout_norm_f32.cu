#include "fused_dropout_norm_backward_kernel.cuh"
#include "fused_dropout_norm_kernel.cuh"

namespace bigmodel {

template <>
void launch_norm<DType::f32>(const DropoutNormArgs& args, cudaStream_t stream) {
  launch_norm_forward<DType::f32>(args, stream);
}

template <>
void launch_norm_backward<DType::f32>(const DropoutNormBackwardArgs& args, int64_t slabs, cudaStream_t stream) {
  launch_backward<DType::f32>(args, slabs, stream);
}

}  // namespace bigmodel
