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

// Hopper by its own instructions: clocks of the slowest multiprocessor. Per step of K the products take one clock for
// 4096 of them, the copies' bytes come from the L2 cache and, once, from memory; a tile's results are stored while
// nothing is multiplied. Figures of the H100's data sheet and of publications, until they are measured.
constexpr double kProductsPerClock = 4096, kBytesPerClock = 34, kMostBytesPerClock = 56;  // of all, of one alone
constexpr double kResultsPerClock = 16, kClocksOfLaunch = 5000, kMemoryBytesPerClock = 14.5;

double wgmma_clocks(const TileSize& tile, int64_t splits, const Int8Sizes& s, int multiprocessors) {
  const int64_t units = tiles_of(tile, s) * splits, steps = ceil_div(ceil_div(s.k, tile.k), splits);
  const double busy = static_cast<double>(std::min<int64_t>(units, multiprocessors)) / multiprocessors;
  const double products = tile.m * tile.n * tile.k / kProductsPerClock;
  const double bytes = (tile.m + tile.n) * tile.k / std::min(kBytesPerClock / busy, kMostBytesPerClock);
  const double unit = static_cast<double>(steps) * std::max(products, bytes) + tile.m * tile.n / kResultsPerClock;
  const double device_bytes = multiprocessors * kMemoryBytesPerClock;
  const double partial = static_cast<double>(8 * splits * s.m * s.n) / device_bytes;  // written, then read
  const double summing = splits == 1 ? 0.0 : kClocksOfLaunch + partial;
  const double memory = static_cast<double>((s.m + s.n) * s.k) / device_bytes;
  return std::max(static_cast<double>(ceil_div(units, multiprocessors)) * unit, memory) + summing;
}

Int8Plan plan_wgmma(const Int8Sizes& s, const Int8Device& device) {
  Int8Plan best = {Int8Kernel::wgmma_64x128, 1};
  double least = 0.0;
  for (int i = 0; i < kWgmmaTiles; ++i) {
    const TileSize& tile = kWgmmaSizes[i];
    if (i == 0 ? s.m > tile.m : s.m <= kWgmmaSizes[0].m) continue;
    const int64_t most = std::max<int64_t>(std::min(kMostSplits, ceil_div(s.k, tile.k) / kStepsOfSplit), 1);
    for (int64_t splits = 1; splits <= most; ++splits) {
      const double clocks = wgmma_clocks(tile, splits, s, device.multiprocessors);
      if (least != 0.0 && clocks >= least) continue;
      least = clocks;
      best = {static_cast<Int8Kernel>(static_cast<int>(Int8Kernel::wgmma_64x128) + i), static_cast<int>(splits)};
    }
  }
  return best;
}

Int8Plan plan_tiles(const Int8Sizes& s, const Int8Device& device) {
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
  if (kernel >= Int8Kernel::wgmma_64x128) return s.k > 0 && s.k % 16 == 0;  // TMA's rows
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
  if (device.architecture == 90 && takes(Int8Kernel::wgmma_64x128, s)) return plan_wgmma(s, device);
  return plan_tiles(s, device);
}

void check_plan(const Int8Plan& plan, const Int8Sizes& s, const Int8Device& device) {
  const int kernel = static_cast<int>(plan.kernel);
  BIGMODEL_CHECK(kernel >= 0 && kernel < kInt8Kernels, "there is no int8 kernel ", kernel);
  BIGMODEL_CHECK(takes(plan.kernel, s), "the kernel ", kInt8KernelNames[kernel], " does not take M=", s.m, ", K=", s.k);
  const bool wgmma = plan.kernel >= Int8Kernel::wgmma_64x128;
  BIGMODEL_CHECK(!wgmma || device.architecture == 90, "the kernel ", kInt8KernelNames[kernel],
                 " needs compute capability 9.0, this device has ", device.architecture / 10, ".",
                 device.architecture % 10);
  const int64_t most = wgmma ? ceil_div(s.k, kWgmmaSizes[0].k) : plan.kernel >= Int8Kernel::tile_64x64 ? 65535 : 1;
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
