// 16-bit activations or gradients times a sparse matrix in masks and units (sparse_bits.h), in tiles on tensor cores:
// sparse is what is loaded, dense what is multiplied. sparse_tiles_<dtype>.cu instantiate it.
//
// A block's step takes 64 rows of W and one unit of 128 columns: each warp copies the masks and values of eight rows to
// shared memory (sparse_stage.cuh), two steps ahead, and spreads them there into a dense tile (warp_tiles.cuh).
//
//   product       block's output     A, its tile            B, its tile                            a step takes
//   forward       kM rows x 64 n     x [kM][128 k]          W [64 n][128 k]                        128 of K
//   grad_input    kM rows x 128 k    grad [kM][64 n]        W [64 n][128 k], transposed            64 of N
//   grad_values   64 n x 128 k       grad [64 m][64 n], t.  x [64 m][128 k], transposed            64 of M
//
// The gradient of the values is computed for all of W and kept where the mask has a bit.
#pragma once

#include "launch.h"
#include "linear_epilogue.h"
#include "sparse_stage.cuh"
#include "warp_tiles.cuh"

namespace bigmodel {
namespace {

constexpr int kSlots = 2, kTileRows = 64, kWarpRows = kTileRows / kWarps;
constexpr int kWide = 2 * kUnit;        // bytes of a tile's row of 128 columns
constexpr int kNarrow = 2 * kTileRows;  // and of 64

template <SparseProduct kProduct, int kM>
struct Shape {
  static constexpr bool kForward = kProduct == SparseProduct::forward, kValues = kProduct == SparseProduct::grad_values;
  static constexpr int kARows = kValues ? kTileRows : kM, kABytes = kForward ? kWide : kNarrow;
  static constexpr int kOutRows = kValues ? kTileRows : kM, kOutColumns = kForward ? kTileRows : kUnit;
  static constexpr int kDepth = kForward ? kUnit : kTileRows;                  // of the sum that a step adds up
  static constexpr int kASlot = kARows * kABytes, kBTile = kTileRows * kWide;  // bytes
  static constexpr int kBSlots = kValues ? kSlots : 1;
  using Grid = WarpGrid<kOutRows, kOutColumns>;
  using A = Operand<kABytes, kValues>;
  using B = Operand<kWide, !kForward>;
};

template <typename T, SparseProduct kProduct, int kM>
struct alignas(128) TileMemory {
  using S = Shape<kProduct, kM>;
  unsigned char a[kSlots][S::kASlot], b[S::kBSlots][S::kBTile];
  UnitStage<T> stages[S::kValues ? 1 : kSlots][S::kValues ? 1 : kTileRows];
};  // in the end, of the sums

// A warp's eight rows of W: their units on the way, and their dense tile.
template <typename T, SparseProduct kProduct>
struct WarpRows {
  const BitsArgs& a;
  int tile, warp, lane;  // tile: of 64 rows (forward) or of units (grad_input)
  uint2 here, next;      // lane l: the unit of row l / 4 in step l % 4 of these four steps and of the next four

  __device__ __forceinline__ int64_t row(int step, int r) const {
    return static_cast<int64_t>(kProduct == SparseProduct::forward ? tile : step) * kTileRows + kWarpRows * warp + r;
  }
  __device__ __forceinline__ int unit(int step) const { return kProduct == SparseProduct::forward ? step : tile; }
  __device__ __forceinline__ bool exists(int step, int r) const {
    return row(step, r) < a.n && unit(step) < a.row_units;
  }
  __device__ __forceinline__ int64_t index(int step, int r) const { return row(step, r) * a.row_units + unit(step); }

  __device__ __forceinline__ uint2 load(int first) const {
    const int step = first + lane % 4, r = lane / 4;
    return exists(step, r) ? __ldg(a.units + index(step, r)) : make_uint2(0, 0);
  }
  __device__ __forceinline__ void copy(int step, bool ahead, UnitStage<T>* stages) const {
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      const UnitValues v = unit_values(a, ahead ? next : here, 4 * r + step % 4);
      copy_unit(a, index(step, r), exists(step, r), v, lane, stages[kWarpRows * warp + r]);
    }
  }
  __device__ __forceinline__ void spread(int step, const UnitStage<T>* stages, unsigned char* b) const {
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      const UnitStage<T>& stage = stages[kWarpRows * warp + r];
      const FourColumns four = four_columns(stage, unit_values(a, here, 4 * r + step % 4), lane);
      uint32_t at = four.first, pair[2] = {};
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (four.stored >> j & 1) pair[j / 2] |= static_cast<uint32_t>(stage.values[at++].bits) << (j % 2 * 16);
      unsigned char* to = b + place<kWide>(kWarpRows * warp + r, lane / 2) + lane % 2 * 8;
      *reinterpret_cast<uint2*>(to) = make_uint2(pair[0], pair[1]);
    }
  }
};

__device__ __forceinline__ void keep_stored(const BitsArgs& a, const LinearEpilogue& e, int64_t row, int column,
                                            float v) {
  const int64_t unit = row * a.row_units + column / kUnit;
  const int word = column % kUnit / 32, bit = column % 32;
  const uint32_t mask = __ldg(reinterpret_cast<const uint32_t*>(a.masks + unit) + word);
  if (!(mask >> bit & 1)) return;
  const uint2 held = __ldg(a.units + unit);
  store_element(e.out, e.dtype, held.x + before_word(held.y, word) + __popc(mask & below(bit)), v);
}

// The output's rows and columns are the block's grid position: blockIdx.y and blockIdx.x.
template <typename T, SparseProduct kProduct, int kM>
__global__ void __launch_bounds__(kThreads, 2) sparse_tiles_kernel(TilesArgs t, LinearEpilogue epilogue) {
  using S = Shape<kProduct, kM>;
  auto& memory = *dynamic_shared<TileMemory<T, kProduct, kM>>();
  static_assert(sizeof(memory) >= OutputTile<S::kOutRows, S::kOutColumns>::kBytes, "The sums have room there.");
  const BitsArgs& w = t.w;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * S::kOutRows;
  const int first_column = blockIdx.x * S::kOutColumns;
  const typename S::Grid grid{warp, lane};
  WarpRows<T, kProduct> rows{w, static_cast<int>(blockIdx.x), warp, lane, {}, {}};
  const uint32_t a_tiles = ptx::shared_address(memory.a), b_tiles = ptx::shared_address(memory.b);

  const ByteMatrix a{w.x, 2 * w.x_stride, w.m, 2 * (S::kForward ? w.k : w.n)};
  const auto copy = [&](int step, bool ahead) {
    const int slot = step % kSlots;
    if (step < t.steps) {
      const int64_t a_row = S::kValues ? static_cast<int64_t>(step) * kTileRows : first_row;
      const int a_column = S::kValues ? static_cast<int>(first_row) : step * S::kDepth;
      copy_tile<S::kARows, S::kABytes>(a_tiles + slot * S::kASlot, a, a_row, 2 * a_column);
      if constexpr (S::kValues)
        copy_tile<kTileRows, kWide>(b_tiles + slot * S::kBTile, {t.b, 2 * t.b_stride, w.m, 2 * w.k}, a_row,
                                    2 * first_column);
      if constexpr (!S::kValues) rows.copy(step, ahead, memory.stages[slot]);
    }
    ptx::commit_async();
  };

  if constexpr (!S::kValues) {
    rows.here = rows.load(0);
    rows.next = rows.load(4);
  }
  for (int step = 0; step < kSlots; ++step) copy(step, false);
  float sum[S::Grid::kPairs][2][4] = {};
  for (int step = 0; step < t.steps; ++step) {
    const int slot = step % kSlots;
    ptx::wait_async<kSlots - 1>();
    if constexpr (!S::kValues) {
      if (step % 4 == 0 && step) {
        rows.here = rows.next;
        rows.next = rows.load(step + 4);
      }
      __syncwarp();  // the warp's units are there
      rows.spread(step, memory.stages[slot], memory.b[0]);
    }
    __syncthreads();  // the tiles are there
    multiply_tiles<T, typename S::A, typename S::B, S::kDepth / 16>(
        a_tiles + slot * S::kASlot, b_tiles + (S::kValues ? slot * S::kBTile : 0), grid, sum);
    __syncthreads();  // and are done with
    copy(step + kSlots, (step + kSlots) / 4 != step / 4);
  }

  OutputTile<S::kOutRows, S::kOutColumns>::finish_all(&memory, grid, sum, [&](int r, int c, float v) {
    const int64_t row = first_row + r;
    const int column = first_column + c;
    if (row >= (S::kValues ? w.n : w.m) || column >= (S::kForward ? w.n : w.k)) return;
    if constexpr (S::kValues)
      keep_stored(w, epilogue, row, column, v);
    else
      finish(epilogue, row, column, v);
  });
}

template <typename T, SparseProduct kProduct, int kM>
void launch_shape(TilesArgs t, const LinearEpilogue& epilogue, cudaStream_t stream) {
  using S = Shape<kProduct, kM>;
  const auto tiles = [](int64_t size, int tile) { return static_cast<unsigned>((size + tile - 1) / tile); };
  t.steps = static_cast<int>(tiles(S::kForward ? t.w.k : S::kValues ? t.w.m : t.w.n, S::kDepth));
  const dim3 grid(tiles(S::kForward ? t.w.n : t.w.k, S::kOutColumns), tiles(S::kValues ? t.w.n : t.w.m, S::kOutRows));
  launch("sparse_tiles", sparse_tiles_kernel<T, kProduct, kM>,
         {grid, kThreads, sizeof(TileMemory<T, kProduct, kM>), stream}, t, epilogue);
}

template <typename T>
void launch_product(SparseProduct product, const TilesArgs& t, const LinearEpilogue& e, cudaStream_t stream) {
  const bool few = t.w.m <= 32;
  if (product == SparseProduct::grad_values) return launch_shape<T, SparseProduct::grad_values, 64>(t, e, stream);
  if (product == SparseProduct::grad_input)
    return few ? launch_shape<T, SparseProduct::grad_input, 32>(t, e, stream)
               : launch_shape<T, SparseProduct::grad_input, 64>(t, e, stream);
  few ? launch_shape<T, SparseProduct::forward, 32>(t, e, stream)
      : launch_shape<T, SparseProduct::forward, 64>(t, e, stream);
}

}  // namespace
}  // namespace bigmodel
