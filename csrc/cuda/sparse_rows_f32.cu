#include "sparse_rows_kernel.cuh"

namespace bigmodel {

template <>
void launch_sparse_rows<DType::f32, true>(const RowsArgs& args, const LinearEpilogue& epilogue, cudaStream_t stream) {
  launch_rows<float, float>(args, epilogue, stream);
}

}  // namespace bigmodel
