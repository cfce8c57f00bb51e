#include "sparse_bits_kernel.cuh"

namespace bigmodel {

template <>
void launch_sparse_bits<DType::f16>(const BitsArgs& args, const LinearEpilogue& epilogue, cudaStream_t stream) {
  launch_bits<F16>(args, epilogue, stream);
}

}  // namespace bigmodel
