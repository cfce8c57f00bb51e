// Rows of int8 times a sparse matrix of 1x4 blocks in masks and units (sparse_bits.h), in tiles on tensor cores. A
// block's step takes 64 rows of W and one word of its masks, 32 blocks = 128 bytes of K: each warp copies the blocks of
// eight rows to shared memory, kSlots steps ahead, and spreads them there into a dense tile; a lane has one block of a
// row.
#include "launch.h"
#include "linear_epilogue.h"
#include "sparse_bits.h"
#include "warp_tiles.cuh"

namespace bigmodel {
namespace {

constexpr int kSlots = 3, kTileRows = 64, kWarpRows = kTileRows / kWarps, kStepBytes = 128;
constexpr int kWords = 9 * 4;  // 32 blocks that begin anywhere, in pieces of 16 bytes

template <int kM>
struct alignas(128) Int8TileMemory {
  unsigned char a[kSlots][kM * kStepBytes], b[kTileRows * kStepBytes];
  uint32_t stages[kSlots][kTileRows][kWords];
};

// A warp's eight rows. Lane l holds the word of row l / 4 in step l % 4 of these four steps (a unit) and of the next.
struct WarpBlocks {
  const BitsArgs& a;
  int64_t row;  // the first of the eight
  int lane;
  MaskWord here, next;

  __device__ __forceinline__ MaskWord load(int step) const { return load_word(a, row + lane / 4, step / 4, lane % 4); }
  static __device__ __forceinline__ MaskWord of(MaskWord held, int r, int step) {
    const int source = 4 * r + step % 4;
    return {__shfl_sync(0xffffffffu, held.first, source), __shfl_sync(0xffffffffu, held.mask, source)};
  }
  __device__ __forceinline__ void copy(int step, bool ahead, uint32_t (*stages)[kWords]) const {
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      const MaskWord w = of(ahead ? next : here, r, step);
      const uint32_t from = w.first / 4 * 4 + lane * 4, end = w.first + __popc(w.mask);
      if (!w.mask || from >= end) continue;
      const int64_t left = 4 * (a.stored - from);
      ptx::copy_async_16(ptx::shared_address(stages[r] + 4 * lane), static_cast<const uint32_t*>(a.values) + from,
                         left < 16 ? static_cast<int>(left) : 16);
    }
  }
  __device__ __forceinline__ void spread(int step, const uint32_t (*stages)[kWords], unsigned char* b,
                                         int tile_row) const {
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      const MaskWord w = of(here, r, step);
      const uint32_t at = w.first % 4 + __popc(w.mask & below(lane));
      *reinterpret_cast<uint32_t*>(b + place<kStepBytes>(tile_row + r, lane / 4) + lane % 4 * 4) =
          w.mask >> lane & 1 ? stages[r][at] : 0;
    }
  }
};

template <int kM>
__global__ void __launch_bounds__(kThreads, 2)
    sparse_int8_tiles_kernel(BitsArgs w, int steps, LinearEpilogue epilogue) {
  using Grid = WarpGrid<kM, kTileRows>;
  auto& memory = *dynamic_shared<Int8TileMemory<kM>>();
  static_assert(sizeof(memory) >= OutputTile<kM, kTileRows>::kBytes, "The sums have room there.");
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kM;
  const int first_column = blockIdx.x * kTileRows;
  const Grid grid{warp, lane};
  WarpBlocks rows{w, first_column + kWarpRows * warp, lane, {}, {}};
  const uint32_t a_tiles = ptx::shared_address(memory.a), b_tile = ptx::shared_address(memory.b);
  const ByteMatrix a{w.x, 4 * w.x_stride, w.m, 4 * w.k};

  const auto copy = [&](int step, bool ahead) {
    const int slot = step % kSlots;
    if (step < steps) {
      copy_tile<kM, kStepBytes>(a_tiles + slot * kM * kStepBytes, a, first_row, step * kStepBytes);
      rows.copy(step, ahead, memory.stages[slot] + kWarpRows * warp);
    }
    ptx::commit_async();
  };

  rows.here = rows.load(0);
  rows.next = rows.load(4);
  for (int step = 0; step < kSlots; ++step) copy(step, false);
  int32_t sum[Grid::kPairs][2][4] = {};
  for (int step = 0; step < steps; ++step) {
    const int slot = step % kSlots;
    ptx::wait_async<kSlots - 1>();
    if (step % 4 == 0 && step) {
      rows.here = rows.next;
      rows.next = rows.load(step + 4);
    }
    __syncwarp();  // the warp's blocks are there
    rows.spread(step, memory.stages[slot] + kWarpRows * warp, memory.b, kWarpRows * warp);
    __syncthreads();  // the tiles are there
    multiply_tiles<int8_t, Operand<kStepBytes, false>, Operand<kStepBytes, false>, kStepBytes / 32>(
        a_tiles + slot * kM * kStepBytes, b_tile, grid, sum);
    __syncthreads();  // and are done with
    copy(step + kSlots, (step + kSlots) / 4 != step / 4);
  }
  OutputTile<kM, kTileRows>::finish_all(&memory, grid, sum, [&](int r, int c, int32_t v) {
    if (first_row + r < w.m && first_column + c < w.n) finish(epilogue, first_row + r, first_column + c, v);
  });
}

template <int kM>
void launch_tiles(const BitsArgs& w, const LinearEpilogue& epilogue, cudaStream_t stream) {
  const auto tiles = [](int64_t size, int tile) { return static_cast<unsigned>((size + tile - 1) / tile); };
  launch("sparse_int8_tiles", sparse_int8_tiles_kernel<kM>,
         {dim3(tiles(w.n, kTileRows), tiles(w.m, kM)), kThreads, sizeof(Int8TileMemory<kM>), stream}, w,
         static_cast<int>(tiles(w.k, kStepBytes / 4)), epilogue);
}

}  // namespace

void launch_sparse_int8_tiles(const BitsArgs& w, const LinearEpilogue& epilogue, cudaStream_t stream) {
  w.m <= 32 ? launch_tiles<32>(w, epilogue, stream) : launch_tiles<64>(w, epilogue, stream);
}

}  // namespace bigmodel
