#include "conv_tile_loops.h"

namespace bigmodel {

const ConvTileKernels conv_tile_scalar = {gather, store};

}  // namespace bigmodel
