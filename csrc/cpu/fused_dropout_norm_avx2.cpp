#include "simd_avx2.h"
// After the vector type:
#include "fused_dropout_norm_vector.h"
#include "row_slabs.h"

namespace bigmodel {

void norm_rows_avx2(const NormArgs& args, int64_t begin, int64_t end, bool stream) {
  if (args.dtype == DType::f32) return norm_rows<DType::f32>(args, begin, end, stream);
  if (args.dtype == DType::bf16) return norm_rows<DType::bf16>(args, begin, end, stream);
  norm_rows<DType::f16>(args, begin, end, stream);
}

void norm_rows_backward_avx2(const NormArgs& args, int64_t begin, int64_t end, float* sums) {
  if (args.dtype == DType::f32) return norm_rows_backward<DType::f32>(args, begin, end, sums);
  if (args.dtype == DType::bf16) return norm_rows_backward<DType::bf16>(args, begin, end, sums);
  norm_rows_backward<DType::f16>(args, begin, end, sums);
}

void add_rows_avx2(const void* rows, DType dtype, int64_t begin, int64_t end, int64_t features, float* sums) {
  if (dtype == DType::f32) return add_rows<DType::f32>(rows, begin, end, features, sums);
  if (dtype == DType::bf16) return add_rows<DType::bf16>(rows, begin, end, features, sums);
  add_rows<DType::f16>(rows, begin, end, features, sums);
}

}  // namespace bigmodel
