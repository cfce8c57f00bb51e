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

}  // namespace bigmodel
