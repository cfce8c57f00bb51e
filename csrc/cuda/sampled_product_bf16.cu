#include "sampled_product.cuh"

namespace bigmodel {

template <>
void BlockProducts<DType::bf16>::grad_values(const SampledArgs& args, int64_t size, cudaStream_t stream) {
  const char* name = "block_sparse_linear_grad_values";
  if (size == 16) return launch_sampled<DType::bf16, 16, false>(args, name, stream);
  if (size == 32) return launch_sampled<DType::bf16, 32, false>(args, name, stream);
  launch_sampled<DType::bf16, 64, false>(args, name, stream);
}

template <>
void BlockProducts<DType::bf16>::semi_grad_values(const SampledArgs& args, cudaStream_t stream) {
  launch_sampled<DType::bf16, 64, true>(args, "semi_sparse_linear_grad_values", stream);
}

}  // namespace bigmodel
