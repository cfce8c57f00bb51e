// 16-bit activations or gradients times a sparse matrix in masks and units (sparse_bits.h), in tiles on tensor cores:
// sparse is what is loaded, dense what is multiplied. sparse_tiles_<dtype>.cu instantiate it.
//
// A block's step takes 64 rows of W and one unit of 128 columns: each warp copies the masks and values of eight rows to
// shared memory (sparse_stage.cuh), two steps ahead, and spreads them there into a dense tile. Tiles' rows are 128 or
// 256 bytes in chunks of 16 that change places by row, so that eight rows' chunks are in different banks.
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

namespace bigmodel {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps, kSlots = 2, kTileRows = 64, kWarpRows = kTileRows / kWarps;
constexpr int kWide = 2 * kUnit;        // bytes of a tile's row of 128 columns
constexpr int kNarrow = 2 * kTileRows;  // and of 64

template <int kRowBytes>
__device__ __forceinline__ uint32_t place(int row, int chunk) {
  return static_cast<uint32_t>(row * kRowBytes + (chunk ^ (row & 7)) * 16);
}

template <SparseProduct kProduct, int kM>
struct Shape {
  static constexpr bool kForward = kProduct == SparseProduct::forward, kValues = kProduct == SparseProduct::grad_values;
  static constexpr int kARows = kValues ? kTileRows : kM, kABytes = kForward ? kWide : kNarrow;
  static constexpr int kOutRows = kValues ? kTileRows : kM, kOutColumns = kForward ? kTileRows : kUnit;
  static constexpr int kDepth = kForward ? kUnit : kTileRows;                  // of the sum that a step adds up
  static constexpr int kWarpsM = kOutRows / 16, kWarpsN = kWarps / kWarpsM;    // a warp has 16 rows
  static constexpr int kPairs = kOutColumns / kWarpsN / 16;                    // and as many times 16 columns
  static constexpr int kASlot = kARows * kABytes, kBTile = kTileRows * kWide;  // bytes
  static constexpr int kBSlots = kValues ? kSlots : 1;
  static_assert(kWarpsM * kWarpsN == kWarps && kPairs >= 1, "Each warp has its part of the output.");
};

template <typename T, SparseProduct kProduct, int kM>
struct alignas(128) TileMemory {
  using S = Shape<kProduct, kM>;
  unsigned char a[kSlots][S::kASlot], b[S::kBSlots][S::kBTile];
  UnitStage<T> stages[S::kValues ? 1 : kSlots][S::kValues ? 1 : kTileRows];
};

// kRows rows of kRowBytes from (row, column) of p [rows][columns]; zeros beyond.
template <int kRows, int kRowBytes>
__device__ __forceinline__ void copy_tile(uint32_t to, const uint16_t* p, int64_t stride, int64_t row, int64_t rows,
                                          int column, int columns) {
  constexpr int kChunks = kRowBytes / 16;
#pragma unroll
  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    const int r = i / kChunks, chunk = i % kChunks, first = column + 8 * chunk;
    const int bytes = row + r < rows ? 2 * max(min(columns - first, 8), 0) : 0;
    ptx::copy_async_16(to + place<kRowBytes>(r, chunk), bytes ? p + (row + r) * stride + first : p, bytes);
  }
}

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

template <typename T, SparseProduct kProduct, int kM>
__device__ __forceinline__ void multiply_step(uint32_t a_tile, uint32_t b_tile, int warp, int lane,
                                              float (&sum)[Shape<kProduct, kM>::kPairs][2][4]) {
  using S = Shape<kProduct, kM>;
  const int warp_m = warp / S::kWarpsN, warp_n = warp % S::kWarpsN;
#pragma unroll
  for (int k = 0; k < S::kDepth / 16; ++k) {
    uint32_t a[4];
    if constexpr (S::kValues)
      ptx::load_matrix_transposed(
          a, a_tile + place<S::kABytes>(16 * k + lane / 16 * 8 + lane % 8, 2 * warp_m + lane / 8 % 2));
    else
      ptx::load_matrix(a, a_tile + place<S::kABytes>(16 * warp_m + lane % 16, 2 * k + lane / 16));
#pragma unroll
    for (int p = 0; p < S::kPairs; ++p) {
      const int pair = S::kPairs * warp_n + p;
      uint32_t b[4];
      if constexpr (S::kForward)
        ptx::load_matrix(b, b_tile + place<kWide>(16 * pair + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
      else
        ptx::load_matrix_transposed(b, b_tile + place<kWide>(16 * k + lane % 16, 2 * pair + lane / 16));
      const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
      multiply_tile(T{}, sum[p][0], a, low);
      multiply_tile(T{}, sum[p][1], a, high);
    }
  }
}

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
  const BitsArgs& w = t.w;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * S::kOutRows;
  const int first_column = blockIdx.x * S::kOutColumns;
  WarpRows<T, kProduct> rows{w, static_cast<int>(blockIdx.x), warp, lane, {}, {}};
  const uint32_t a_tiles = ptx::shared_address(memory.a), b_tiles = ptx::shared_address(memory.b);

  const auto copy = [&](int step, bool ahead) {
    const int slot = step % kSlots;
    if (step < t.steps) {
      const int64_t a_row = S::kValues ? static_cast<int64_t>(step) * kTileRows : first_row;
      const int a_column = S::kValues ? static_cast<int>(first_row) : step * S::kDepth;
      copy_tile<S::kARows, S::kABytes>(a_tiles + slot * S::kASlot, static_cast<const uint16_t*>(w.x), w.x_stride, a_row,
                                       w.m, a_column, S::kForward ? w.k : w.n);
      if constexpr (S::kValues)
        copy_tile<kTileRows, kWide>(b_tiles + slot * S::kBTile, static_cast<const uint16_t*>(t.b), t.b_stride, a_row,
                                    w.m, first_column, w.k);
    }
    if constexpr (!S::kValues) rows.copy(step, ahead, memory.stages[slot]);
    ptx::commit_async();
  };

  if constexpr (!S::kValues) {
    rows.here = rows.load(0);
    rows.next = rows.load(4);
  }
  for (int step = 0; step < kSlots; ++step) copy(step, false);
  float sum[S::kPairs][2][4] = {};
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
    multiply_step<T, kProduct, kM>(a_tiles + slot * S::kASlot, b_tiles + (S::kValues ? slot * S::kBTile : 0), warp,
                                   lane, sum);
    __syncthreads();  // and are done with
    copy(step + kSlots, (step + kSlots) / 4 != step / 4);
  }

  const int warp_m = warp / S::kWarpsN, warp_n = warp % S::kWarpsN;
#pragma unroll
  for (int p = 0; p < S::kPairs; ++p)
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int64_t row = first_row + 16 * warp_m + lane / 4 + i % 4 / 2 * 8;
      const int column = first_column + 16 * (S::kPairs * warp_n + p) + i / 4 * 8 + lane % 4 * 2 + i % 2;
      if (row >= (S::kValues ? w.n : w.m) || column >= (S::kForward ? w.n : w.k)) continue;
      if constexpr (S::kValues)
        keep_stored(w, epilogue, row, column, sum[p][i / 4][i % 4]);
      else
        finish(epilogue, row, column, sum[p][i / 4][i % 4]);
    }
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
