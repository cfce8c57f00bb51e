#include "simd_avx512.h"
// After the vector type:
#include "row_panels_vector.h"

namespace bigmodel {

const RowPanelKernels row_panel_kernels_avx512 = {pack, unpack};

}  // namespace bigmodel
