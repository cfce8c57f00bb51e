// out[m][column] = sum over the stored blocks of a block column of x[m][panel] times block, + bias: the forward product
// of block-sparse weights, and with the roles of N and K exchanged their input gradient and that of 2:4 weights.
//
// A block of threads has 128 (or 16) rows of x and one block column of the output. A stage brings 128 bytes of each
// row's inputs: for blocks of 16 and 16-bit floats those are four panels, and the four blocks that belong to them. Only
// stored blocks are read. 2:4 weights are read as they are stored and spread out to dense blocks of 64 in shared
// memory: along N, which this product sums over, they have no pattern that tensor cores could use.
//
// 16-bit floats take tensor cores (mma m16n8k16); float32 takes CUDA cores, each lane with the sums that it would have
// in a tensor core's fragment, and no rounding but float32's own.
#pragma once

#include "block_sparse_launch.h"
#include "shared_tile.cuh"

namespace bigmodel {

namespace {

// kBack: the block's columns are summed over, and its rows are outputs. kSemi: blocks are 2 x 2 tiles of 2:4 weights.
template <DType D, int kBlockSize, bool kBackward, bool kTwoFour, bool kFew>
struct ProductTile {
  using T = typename FloatElement<D>::Type;
  static constexpr bool kBack = kBackward, kSemi = kTwoFour;
  static constexpr int kSize = kBlockSize, kThreads = 128, kElements = kChunk / static_cast<int>(sizeof(T));
  static constexpr int kWarpRows = kFew ? 16 : 32, kSlices = kFew ? 4 : 1, kRows = kFew ? 16 : 128;
  static constexpr int kDepth = 128 / static_cast<int>(sizeof(T));              // summed over in a stage
  static constexpr int kBlocks = kDepth > kSize ? kDepth / kSize : 1;           // to a stage
  static constexpr int kParts = kSize > kDepth && !kSemi ? kSize / kDepth : 1;  // stages to a block
  static constexpr int kDenseBytes = kDepth * kSize * static_cast<int>(sizeof(T));
  static constexpr int kDenseRowBytes = (kBack && kSize > kDepth ? kDepth : kSize) * static_cast<int>(sizeof(T));
  static constexpr int kTileValues = 512 * static_cast<int>(sizeof(T)), kTiles = kDepth / 32 * 2;  // 2:4, of a stage
  // Of a stage.
  static constexpr int kWeights = kRows * 128, kIndex = kWeights + kTiles * kTileValues;
  static constexpr int kStageBytes = kSemi ? kIndex + kTiles * 128 : kWeights + kDenseBytes;
  static constexpr int kStages = kFew ? 4 : 3, kDense = kStages * kStageBytes;  // where 2:4 weights become dense
  using Sums = StagedSums<float, kRows, kSize, kSize + 8, kSlices>;
  static constexpr int kStagesBytes = kDense + (kSemi ? kDenseBytes : 0);
  static constexpr int kBytes = kStagesBytes > Sums::kBytes ? kStagesBytes : Sums::kBytes;
  static_assert(!kSemi || (kBack && kSize == 64), "2:4 weights are multiplied forward by mma.sp.");
};

// The stored blocks of a block column of the output, in the order they are summed. Damaged indices name no memory that
// is not theirs.
template <typename Tile>
struct BlockList {
  const int32_t *panel = nullptr, *order = nullptr;
  int64_t first = 0, count = 0;

  __device__ __forceinline__ BlockList(const ProductArgs& a, int64_t column) {
    if constexpr (Tile::kSemi) {
      count = ceil_div(a.depth, Tile::kDepth);
    } else if constexpr (Tile::kBack) {
      panel = a.panel + column * a.list_stride;
      order = a.order + column * a.list_stride;
      count = __ldg(a.ends + column);
    } else {
      first = min(max(int64_t{__ldg(a.ends + column)}, int64_t{0}), a.blocks);
      count = min(int64_t{__ldg(a.ends + column + 1)}, a.blocks) - first;
      panel = a.panel + first;
    }
  }
  __device__ __forceinline__ int64_t steps() const {
    return count <= 0 ? 0 : ceil_div(count, Tile::kBlocks) * Tile::kParts;
  }
  __device__ __forceinline__ int64_t panel_of(int64_t i) const { return Tile::kSemi ? i : __ldg(panel + i); }
  __device__ __forceinline__ int64_t block_of(int64_t i) const { return Tile::kBack ? __ldg(order + i) : first + i; }
};

template <typename Tile>
struct ProductLoader {
  using T = typename Tile::T;
  const ProductArgs& a;
  const BlockList<Tile>& list;
  int64_t first_row, column;

  __device__ __forceinline__ void activations(uint32_t stage, int64_t step) const {
    const int chunk = static_cast<int>(threadIdx.x % 8), sub = chunk * Tile::kElements / Tile::kSize;
    const int64_t item = step / Tile::kParts * Tile::kBlocks + sub;
    int64_t k = -1;
    if constexpr (Tile::kSemi) {
      k = step * Tile::kDepth + chunk * Tile::kElements;
    } else if (item < list.count) {
      k = list.panel_of(item) * Tile::kSize + step % Tile::kParts * Tile::kDepth + chunk * Tile::kElements -
          sub * Tile::kSize;
    }
    for (int row = static_cast<int>(threadIdx.x / 8); row < Tile::kRows; row += Tile::kThreads / 8) {
      const int64_t m = first_row + row;
      const bool inside = m < a.m && k >= 0 && k < a.depth;
      ptx::copy_async_16(stage + tile_offset<128>(row, chunk),
                         static_cast<const T*>(a.x) + (inside ? m * a.depth + k : 0), inside ? kChunk : 0);
    }
  }

  __device__ __forceinline__ void blocks(uint32_t stage, int64_t step) const {
    constexpr int kPerRow = Tile::kDenseRowBytes / kChunk, kChunks = Tile::kDenseBytes / kChunk;
    const int64_t part = step % Tile::kParts * Tile::kDepth;
    for (int i = static_cast<int>(threadIdx.x); i < kChunks; i += Tile::kThreads) {
      const int row = i / kPerRow, chunk = i % kPerRow, sub = row / Tile::kSize;
      const int64_t item = step / Tile::kParts * Tile::kBlocks + sub;
      const bool inside = item < list.count;
      const int64_t from = row % Tile::kSize * Tile::kSize + part * (Tile::kBack ? 1 : Tile::kSize) +
                           (inside ? list.block_of(item) * (Tile::kSize * Tile::kSize) : 0);
      ptx::copy_async_16(stage + Tile::kWeights + tile_offset<Tile::kDenseRowBytes>(row, chunk),
                         static_cast<const T*>(a.values) + from + chunk * Tile::kElements, inside ? kChunk : 0);
    }
  }

  // Tile row by tile row of the stage, its two tile columns. Tiles that do not exist are zeros.
  __device__ __forceinline__ void tiles(uint32_t stage, int64_t step) const {
    constexpr int kValueChunks = Tile::kTileValues / kChunk, kIndexChunks = 128 / kChunk;
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kTiles * kValueChunks; i += Tile::kThreads) {
      const int64_t at = tile_at(i / kValueChunks, step);
      ptx::copy_async_16(
          stage + Tile::kWeights + i * kChunk,
          static_cast<const char*>(a.values) + max(at, int64_t{0}) * Tile::kTileValues + i % kValueChunks * kChunk,
          at < 0 ? 0 : kChunk);
    }
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kTiles * kIndexChunks; i += Tile::kThreads) {
      const int64_t at = tile_at(i / kIndexChunks, step);
      ptx::copy_async_16(stage + Tile::kIndex + i * kChunk,
                         a.index + max(at, int64_t{0}) * 128 + i % kIndexChunks * kChunk, at < 0 ? 0 : kChunk);
    }
  }

  __device__ __forceinline__ int64_t tile_at(int tile, int64_t step) const {
    const int64_t row = step * (Tile::kDepth / 32) + tile / 2, at = column * 2 + tile % 2;
    return row < a.tile_rows && at < a.tile_columns ? row * a.tile_columns + at : -1;
  }
};

// A stage's 2:4 tiles, spread out: [64 inputs][kDepth outputs].
template <typename Tile>
__device__ __forceinline__ void spread_tiles(const unsigned char* stage, unsigned char* dense) {
  using T = typename Tile::T;
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kTiles * 256; i += Tile::kThreads) {
    const int n = i % 32, group = i / 32 % 8, tile = i / 256;
    const T* values = reinterpret_cast<const T*>(stage + Tile::kWeights + tile * Tile::kTileValues) + group * 64 + n;
    const uint32_t word = reinterpret_cast<const uint32_t*>(stage + Tile::kIndex + tile * 128)[n];
    const uint32_t first = word >> (4 * group) & 3, second = word >> (4 * group + 2) & 3;
    const int column = tile / 2 * 32 + n;
#pragma unroll
    for (uint32_t p = 0; p < 4; ++p) {
      const int row = tile % 2 * 32 + group * 4 + static_cast<int>(p);
      unsigned char* to = dense + tile_offset<128>(row, column / Tile::kElements);
      reinterpret_cast<T*>(to)[column % Tile::kElements] = p == first ? values[0] : p == second ? values[32] : T{0};
    }
  }
}

template <typename Tile>
using ProductSums = float[Tile::kWarpRows / 16][Tile::kSize / 8][4];

// A warp's rows, from `row` on, times a stage's block, inputs [slice * kDepth / kSlices, ...).
template <DType D, typename Tile>
__device__ __forceinline__ void multiply_halves(uint32_t x, uint32_t weights, int row, int slice,
                                                ProductSums<Tile>& sums) {
  const int lane = static_cast<int>(threadIdx.x % 32), eighth = lane / 8, in_eighth = lane % 8;
  constexpr int kSteps = Tile::kDepth / 16 / Tile::kSlices, kBytes = Tile::kDenseRowBytes;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int k = (slice * kSteps + step) * 16;
    uint32_t a[Tile::kWarpRows / 16][4];
#pragma unroll
    for (int i = 0; i < Tile::kWarpRows / 16; ++i)
      ptx::load_matrix(a[i], x + tile_offset<128>(row + i * 16 + eighth % 2 * 8 + in_eighth, k / 8 + eighth / 2));
#pragma unroll
    for (int j = 0; j < Tile::kSize; j += 16) {
      uint32_t b[4];
      if constexpr (Tile::kBack) {
        const int at = k / Tile::kSize * Tile::kSize + j + eighth / 2 * 8 + in_eighth;
        ptx::load_matrix(b, weights + tile_offset<kBytes>(at, k % Tile::kSize / 8 + eighth % 2));
      } else {
        ptx::load_matrix_transposed(b,
                                    weights + tile_offset<kBytes>(k + eighth % 2 * 8 + in_eighth, j / 8 + eighth / 2));
      }
      const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
      for (int i = 0; i < Tile::kWarpRows / 16; ++i) {
        FloatElement<D>::multiply(sums[i][j / 8], a[i], left);
        FloatElement<D>::multiply(sums[i][j / 8 + 1], a[i], right);
      }
    }
  }
}

template <typename Tile>
__device__ __forceinline__ void multiply_floats(const unsigned char* x, const unsigned char* weights, int row,
                                                int slice, ProductSums<Tile>& sums) {
  const int lane = static_cast<int>(threadIdx.x % 32), group = lane / 4, pair = lane % 4 * 2;
  constexpr int kSteps = Tile::kDepth / Tile::kSlices, kBytes = Tile::kDenseRowBytes;
  const auto weight = [&](int r, int c) {
    return *reinterpret_cast<const float*>(weights + tile_offset<kBytes>(r, c / 4) + c % 4 * 4);
  };
#pragma unroll 4
  for (int step = 0; step < kSteps; ++step) {
    const int k = slice * kSteps + step;
    float a[Tile::kWarpRows / 8];
#pragma unroll
    for (int i = 0; i < Tile::kWarpRows / 8; ++i)
      a[i] = *reinterpret_cast<const float*>(x + tile_offset<128>(row + i * 8 + group, k / 4) + k % 4 * 4);
#pragma unroll
    for (int j = 0; j < Tile::kSize / 8; ++j) {
      const int n = j * 8 + pair, first = k / Tile::kSize * Tile::kSize + n;
      const float b0 = Tile::kBack ? weight(first, k % Tile::kSize) : weight(k, n);
      const float b1 = Tile::kBack ? weight(first + 1, k % Tile::kSize) : weight(k, n + 1);
#pragma unroll
      for (int i = 0; i < Tile::kWarpRows / 8; ++i) {
        float* sum = &sums[i / 2][j][i % 2 * 2];
        sum[0] = fmaf(a[i], b0, sum[0]);
        sum[1] = fmaf(a[i], b1, sum[1]);
      }
    }
  }
}

template <DType D, typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, 2) block_product_kernel(ProductArgs args) {
  unsigned char* const memory = dynamic_shared<unsigned char>();
  const uint32_t address = ptx::shared_address(memory);
  const TileOrder order(static_cast<int>(blockIdx.x), args.row_blocks, args.column_blocks);
  const BlockList<Tile> list(args, order.column);
  const ProductLoader<Tile> loader{args, list, int64_t{order.row} * Tile::kRows, order.column};
  const int64_t steps = list.steps();
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int slice = Tile::kSlices == 1 ? 0 : warp, row = Tile::kSlices == 1 ? warp * Tile::kWarpRows : 0;

  const auto load = [&](int64_t step) {
    const uint32_t stage = address + static_cast<uint32_t>(step % Tile::kStages) * Tile::kStageBytes;
    if (step < steps) {
      loader.activations(stage, step);
      Tile::kSemi ? loader.tiles(stage, step) : loader.blocks(stage, step);
    }
    ptx::commit_async();
  };
  ProductSums<Tile> sums = {};
  for (int s = 0; s < Tile::kStages - 1; ++s) load(s);
  for (int64_t step = 0; step < steps; ++step) {
    ptx::wait_async<Tile::kStages - 2>();
    __syncthreads();  // everybody's copies are here, and nobody reads any more what the next ones overwrite
    load(step + Tile::kStages - 1);
    const uint32_t stage = static_cast<uint32_t>(step % Tile::kStages) * Tile::kStageBytes;
    uint32_t weights = stage + Tile::kWeights;
    if constexpr (Tile::kSemi) {
      weights = Tile::kDense;
      spread_tiles<Tile>(memory + stage, memory + weights);
      __syncthreads();
    }
    if constexpr (D == DType::f32)
      multiply_floats<Tile>(memory + stage, memory + weights, row, slice, sums);
    else
      multiply_halves<D, Tile>(address + stage, address + weights, row, slice, sums);
  }

  __syncthreads();  // the stages' memory is free
  const typename Tile::Sums staged{reinterpret_cast<float*>(memory)};
#pragma unroll
  for (int i = 0; i < Tile::kWarpRows / 16; ++i)
#pragma unroll
    for (int j = 0; j < Tile::kSize / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        *staged.at(slice, row + i * 16 + e / 2 * 8 + lane / 4, j * 8 + lane % 4 * 2 + e % 2) = sums[i][j][e];
  __syncthreads();
  staged.template store<D, Tile::kThreads>(static_cast<typename Tile::T*>(args.out), args.bias, loader.first_row,
                                           loader.column * Tile::kSize, args.m, args.width);
}

template <DType D, int kSize, bool kBack, bool kSemi, bool kFew>
void launch_product_tile(ProductArgs args, const char* name, cudaStream_t stream) {
  using Tile = ProductTile<D, kSize, kBack, kSemi, kFew>;
  args.column_blocks = static_cast<int>(ceil_div(args.width, kSize));
  args.row_blocks = static_cast<int>(ceil_div(args.m, Tile::kRows));
  const unsigned blocks = static_cast<unsigned>(args.column_blocks) * static_cast<unsigned>(args.row_blocks);
  launch(name, block_product_kernel<D, Tile>, {blocks, Tile::kThreads, Tile::kBytes, stream}, args);
}

template <DType D, int kSize, bool kBack, bool kSemi>
void launch_product(const ProductArgs& args, const char* name, cudaStream_t stream) {
  args.m <= 32 ? launch_product_tile<D, kSize, kBack, kSemi, true>(args, name, stream)
               : launch_product_tile<D, kSize, kBack, kSemi, false>(args, name, stream);
}

}  // namespace

}  // namespace bigmodel
