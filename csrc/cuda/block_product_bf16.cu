#include "block_product.cuh"

namespace bigmodel {

template <>
void BlockProducts<DType::bf16>::forward(const ProductArgs& args, int64_t size, cudaStream_t stream) {
  const char* name = "block_sparse_linear";
  if (size == 16) return launch_product<DType::bf16, 16, false, false>(args, name, stream);
  if (size == 32) return launch_product<DType::bf16, 32, false, false>(args, name, stream);
  launch_product<DType::bf16, 64, false, false>(args, name, stream);
}

template <>
void BlockProducts<DType::bf16>::grad_input(const ProductArgs& args, int64_t size, cudaStream_t stream) {
  const char* name = "block_sparse_linear_grad_input";
  if (size == 16) return launch_product<DType::bf16, 16, true, false>(args, name, stream);
  if (size == 32) return launch_product<DType::bf16, 32, true, false>(args, name, stream);
  launch_product<DType::bf16, 64, true, false>(args, name, stream);
}

template <>
void BlockProducts<DType::bf16>::semi_grad_input(const ProductArgs& args, cudaStream_t stream) {
  launch_product<DType::bf16, 64, true, true>(args, "semi_sparse_linear_grad_input", stream);
}

}  // namespace bigmodel
