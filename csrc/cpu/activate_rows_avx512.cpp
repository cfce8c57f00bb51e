#include "simd_avx512.h"
// After the vector type:
#include "activate_rows_vector.h"

namespace bigmodel {

const ActivateKernels activate_kernels_avx512 = activate_kernels;

}  // namespace bigmodel
