#include "semi_sparse_linear_kernel.cuh"

namespace bigmodel {

template <>
void launch_semi_sparse_linear<DType::bf16>(const SemiArgs& args, SemiShape shape, int device, cudaStream_t stream) {
  launch_shape<DType::bf16>(args, shape, device, stream);
}

}  // namespace bigmodel
