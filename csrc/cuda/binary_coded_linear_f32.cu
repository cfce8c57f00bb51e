#include "binary_coded_linear_kernel.cuh"

namespace bigmodel {

template <>
void launch_binary_coded<DType::f32>(const BinaryCodedArgs& args, bool narrow, cudaStream_t stream) {
  launch_both<DType::f32>(args, narrow, stream);
}

}  // namespace bigmodel
