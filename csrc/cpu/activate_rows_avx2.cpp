#include "simd_avx2.h"
// After the vector type:
#include "activate_rows_vector.h"

namespace bigmodel {

const ActivateKernels activate_kernels_avx2 = activate_kernels;

}  // namespace bigmodel
