#include "sparse_rows_kernel.cuh"

namespace bigmodel {

template <>
void launch_sparse_rows<DType::i32, true>(const RowsArgs& args, const LinearEpilogue& epilogue, cudaStream_t stream) {
  launch_rows<uint32_t, uint32_t>(args, epilogue, stream);
}

}  // namespace bigmodel
