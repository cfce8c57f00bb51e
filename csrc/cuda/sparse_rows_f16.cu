#include "sparse_rows_kernel.cuh"

namespace bigmodel {

template <>
void launch_sparse_rows<DType::f16, false>(const RowsArgs& args, const LinearEpilogue& epilogue, cudaStream_t stream) {
  launch_rows<F16, float>(args, epilogue, stream);
}
template <>
void launch_sparse_rows<DType::f16, true>(const RowsArgs& args, const LinearEpilogue& epilogue, cudaStream_t stream) {
  launch_rows<F16, F16>(args, epilogue, stream);
}

}  // namespace bigmodel
