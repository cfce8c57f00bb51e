#include "simd_avx2.h"
// After the vector type:
#include "row_panels_vector.h"

namespace bigmodel {

const RowPanelKernels row_panel_kernels_avx2 = {pack, unpack};

}  // namespace bigmodel
