#include "fused_dropout_norm.h"

#include "../common/pages.h"
#include "../common/parallel.h"
#include "fused_dropout.h"
#include "isa.h"
#include "row_slabs.h"

namespace bigmodel {
namespace {

#if defined(__x86_64__)
constexpr Variants<NormKernel> forward_variants = {{norm_rows_scalar, norm_rows_avx2, norm_rows_avx512, nullptr}};
constexpr Variants<NormBackwardKernel> backward_variants = {
    {norm_rows_backward_scalar, norm_rows_backward_avx2, norm_rows_backward_avx512, nullptr}};
#else
constexpr Variants<NormKernel> forward_variants = {{norm_rows_scalar, nullptr, nullptr, nullptr}};
constexpr Variants<NormBackwardKernel> backward_variants = {{norm_rows_backward_scalar, nullptr, nullptr, nullptr}};
#endif
const KernelLevel level_of_forward("fused_dropout_norm", [] { return forward_variants.level(); });
const KernelLevel level_of_backward("fused_dropout_norm_backward", [] { return backward_variants.level(); });

constexpr int64_t kGrainElements = 32768;   // below this, waking a second thread costs more than it saves
constexpr int64_t kStreamBytes = 32 << 20;  // outputs that no cache keeps until they are read again

size_t bytes_of(const NormArgs& args) {
  return static_cast<size_t>(args.rows * args.features * element_size(args.dtype));
}

}  // namespace

void fused_dropout_norm(const DropoutArgs& dropout, const NormArgs& norm) {
  const size_t bytes = bytes_of(norm);
  about_to_write(norm.h, bytes);
  about_to_write(norm.y, bytes);
  const bool stream = bytes >= kStreamBytes && reinterpret_cast<uintptr_t>(norm.y) % 64 == 0 && norm.features % 64 == 0;
  const auto kernel = forward_variants.pick();
  const int64_t block = rows_in_block(norm.features), blocks = (norm.rows + block - 1) / block;
  const int64_t grain = (kGrainElements + block * norm.features - 1) / (block * norm.features);
  parallel_for(blocks, grain, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const int64_t begin = b * block, end = begin + block < norm.rows ? begin + block : norm.rows;
      fused_dropout_range(dropout, false, begin * norm.features, end * norm.features);
      kernel(norm, begin, end, stream);
    }
  });
}

void fused_dropout_norm_backward(const DropoutArgs& dropout, const NormArgs& norm, float* sums) {
  about_to_write(norm.dh, bytes_of(norm));
  about_to_write(dropout.out, bytes_of(norm));
  const auto kernel = backward_variants.pick();
  const int vectors = dropout.bias ? 3 : 2;
  run_row_slabs(norm.rows, norm.features, vectors, sums, [&](int64_t begin, int64_t end, float* slab) {
    kernel(norm, begin, end, slab);
    fused_dropout_range(dropout, true, begin * norm.features, end * norm.features);
    if (dropout.bias) add_rows(dropout.out, norm.dtype, begin, end, norm.features, slab + 2 * norm.features);
  });
}

}  // namespace bigmodel
