#include "sparse_tiles_kernel.cuh"

namespace bigmodel {

template <>
void launch_sparse_tiles<DType::bf16>(SparseProduct product, const TilesArgs& args, const LinearEpilogue& epilogue,
                                      cudaStream_t stream) {
  launch_product<Bf16>(product, args, epilogue, stream);
}

}  // namespace bigmodel
