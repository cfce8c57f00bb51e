#include "int8_plan.h"

#include <algorithm>

#include "../common/check.h"
#include "../common/round.h"
#include "int8_launch.h"

namespace bigmodel {
namespace {

constexpr size_t kGemvShared =
    64 << 10;  // of a block: two to a multiprocessor, on every architecture from 80 on but 86 and 89
constexpr int64_t kMostSplits = 8, kStepsOfSplit = 4;

// Operations per clock that a tile reaches, relative to the largest one's: what a warp reads from shared memory for
// each of its products grows as tiles get smaller. An estimate until it is measured.
constexpr double kRate[] = {0.6, 0.85, 1.0};

int64_t tiles_of(const TileSize& size, const Int8Sizes& s) { return ceil_div(s.m, size.m) * ceil_div(s.n, size.n); }

// The tile with the least time: rounds of all multiprocessors times a tile's operations.
Int8Tile best_tile(const Int8Sizes& s, int multiprocessors) {
  int best = 0;
  double least = 0.0;
  for (int i = 0; i < 3; ++i) {
    const TileSize& size = kTileSizes[i];
    const int64_t rounds = ceil_div(tiles_of(size, s), multiprocessors);
    const double time = static_cast<double>(rounds * size.m * size.n) / kRate[i];
    if (i == 0 || time < least) {
      best = i;
      least = time;
    }
  }
  return static_cast<Int8Tile>(best);
}

Int8Plan plan_tiles(const Int8Sizes& s, const Int8Device& device) {
  // Architecture 90 with its own tensor-core instructions has its place here: kernels for it go before these.
  const Int8Tile tile = best_tile(s, device.multiprocessors);
  const TileSize& size = kTileSizes[static_cast<int>(tile)];
  // Blocks for every multiprocessor, as long as each has a few steps of K.
  const int64_t free = device.multiprocessors / std::max<int64_t>(tiles_of(size, s), 1);
  const int64_t splits = std::min({free, kMostSplits, ceil_div(s.k, size.k) / kStepsOfSplit});
  const Int8Kernel kernel = static_cast<Int8Kernel>(static_cast<int>(Int8Kernel::tile_64x64) + static_cast<int>(tile));
  return {kernel, static_cast<int>(std::max<int64_t>(splits, 1))};
}

bool takes(Int8Kernel kernel, const Int8Sizes& s) {
  if (kernel == Int8Kernel::gemv) return s.floats && s.m <= kGemvRows && gemv_shared_bytes(s.m, s.k) <= kGemvShared;
  if (kernel == Int8Kernel::skinny_8 || kernel == Int8Kernel::skinny_32) return s.m <= kSkinnyRows;
  return true;
}

}  // namespace

Int8Plan plan_int8(const Int8Sizes& s, const Int8Device& device) {
  BIGMODEL_CHECK(device.architecture >= 80, "the int8 kernels need compute capability 8.0 or later, this device has ",
                 device.architecture / 10, ".", device.architecture % 10);
  if (takes(Int8Kernel::gemv, s)) return {Int8Kernel::gemv, 1};
  // 32 outputs to a block read the left operand a quarter as often, if there are blocks for most multiprocessors.
  const bool wide = ceil_div(s.n, 32) * 4 >= device.multiprocessors * 3;
  if (takes(Int8Kernel::skinny_8, s)) return {wide ? Int8Kernel::skinny_32 : Int8Kernel::skinny_8, 1};
  return plan_tiles(s, device);
}

void check_plan(const Int8Plan& plan, const Int8Sizes& s) {
  const int kernel = static_cast<int>(plan.kernel);
  BIGMODEL_CHECK(kernel >= 0 && kernel < kInt8Kernels, "there is no int8 kernel ", kernel);
  BIGMODEL_CHECK(takes(plan.kernel, s), "the kernel ", kInt8KernelNames[kernel], " does not take M=", s.m, ", K=", s.k);
  const int most = plan.kernel >= Int8Kernel::tile_64x64 ? 65535 : 1;
  BIGMODEL_CHECK(plan.splits >= 1 && plan.splits <= most, "splits must be in [1, ", most, "], got ", plan.splits);
}

Int8Workspace int8_workspace(const Int8Plan& plan, const Int8Sizes& s) {
  constexpr int64_t kAlignment = 256;
  const bool quantizes = s.floats && plan.kernel != Int8Kernel::gemv;
  Int8Workspace w = {};
  w.q_stride = round_up(s.k, 16);
  const int64_t partial = plan.splits > 1 ? plan.splits * s.m * s.n * 4 : 0;
  w.q = static_cast<size_t>(round_up(partial, kAlignment));
  w.scale = w.q + static_cast<size_t>(quantizes ? round_up(s.m * w.q_stride, kAlignment) : 0);
  w.bytes = w.scale + static_cast<size_t>(quantizes ? s.m * 4 : 0);
  return w;
}

}  // namespace bigmodel
