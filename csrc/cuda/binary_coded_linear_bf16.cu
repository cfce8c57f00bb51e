#include "binary_coded_linear_kernel.cuh"

namespace bigmodel {

template <>
void launch_binary_coded<DType::bf16>(const BinaryCodedArgs& args, bool narrow, cudaStream_t stream) {
  launch_both<DType::bf16>(args, narrow, stream);
}

}  // namespace bigmodel
