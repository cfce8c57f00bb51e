#include "tiles.h"

#include "isa.h"

namespace bigmodel {
namespace {
#if defined(__x86_64__)
constexpr Variants<const TileKernels*> variants = {
    {&tile_kernels_scalar, &tile_kernels_avx2, &tile_kernels_avx512, nullptr}};
#else
constexpr Variants<const TileKernels*> variants = {{&tile_kernels_scalar, nullptr, nullptr, nullptr}};
#endif
}  // namespace

const TileKernels& tile_kernels() { return *variants.pick(); }

void unpack_activated(ActivateRows activate, float* tile, int64_t rows, int64_t columns, int64_t width,
                      const float* bias, void* out, DType dtype, int64_t stride) {
  if (activate && width == 1) {
    if (bias)
      for (int64_t c = 0; c < columns; ++c) tile[c] += bias[c];
    activate(tile, 1, tile_width(columns), 0, nullptr);
  } else if (activate) {
    activate(tile, columns, width, width, bias);
  }
  tile_kernels().unpack(tile, rows, columns, width, activate ? nullptr : bias, out, dtype, stride);
}

}  // namespace bigmodel
