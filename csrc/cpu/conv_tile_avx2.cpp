#include "conv_tile_loops.h"

namespace bigmodel {

const ConvTileKernels conv_tile_avx2 = {gather, store};

}  // namespace bigmodel
