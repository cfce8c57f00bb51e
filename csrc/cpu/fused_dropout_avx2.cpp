#include "simd_avx2.h"
// After the vector type:
#include "fused_dropout_vector.h"

namespace bigmodel {

void fused_dropout_avx2(const DropoutArgs& args, int64_t begin, int64_t end, bool stream) {
  dropout_dtype<false>(args, begin, end, stream);
}

void fused_dropout_backward_avx2(const DropoutArgs& args, int64_t begin, int64_t end, bool stream) {
  dropout_dtype<true>(args, begin, end, stream);
}

}  // namespace bigmodel
