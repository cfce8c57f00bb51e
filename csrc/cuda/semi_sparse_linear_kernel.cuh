// The product on tensor cores, for 16-bit floats. The sparse operand of mma.sp is the left one, so a block computes
// W x^T: its tile's rows are outputs, its columns rows of activations.
//
// The stored format serves as it is. In a tile of 32 outputs by 32 inputs outputs lie side by side and its 16 stored
// values below one another, so that ldmatrix, transposing, gives A's fragments; and an output's index word has its 16
// positions in the order of mma.sp's metadata, which want the lower halves of the words of outputs g and g + 8 in one
// lane and the upper halves in the next: one byte permutation. A word of metadata serves two instructions, for the
// upper and the lower 16 outputs of a tile (the selector).
//
// Per stage of 64 inputs: tiles of values, their index, and rows of x of 128 bytes; cp.async brings what comes kStages
// - 1 stages later. Few rows of activations leave few tiles: then the warps of a block share a tile and split K.
#pragma once

#include "semi_sparse_launch.h"
#include "shared_tile.cuh"

namespace bigmodel {

namespace {

constexpr int kSemi = 32;  // outputs, and inputs, of a tile of the format
constexpr int kSemiStored = 16, kSemiValueBytes = kSemi * kSemiStored * 2, kSemiIndexBytes = kSemi * 4;

// kWarpsN x kWarpsM x kWarpsK warps, each with kTiles x 32 outputs by kFragments x 8 rows of activations.
template <int kWarpsN, int kWarpsM, int kWarpsK, int kTiles, int kFragments, int kStageCount, int kBlocks>
struct SemiTile {
  static constexpr int kStages = kStageCount, kMinBlocks = kBlocks;
  static constexpr int kWarpColumns = kWarpsM, kWarpSlices = kWarpsK, kWarpTiles = kTiles, kWarpFragments = kFragments;
  static constexpr int kThreads = 32 * kWarpsN * kWarpsM * kWarpsK;
  static constexpr int kOutputTiles = kWarpsN * kTiles, kOutputs = kOutputTiles * kSemi;
  static constexpr int kRows = kWarpsM * kFragments * 8;
  static constexpr int kDepth = 64 * kWarpsK, kDepthTiles = kDepth / kSemi;
  // Of a stage.
  static constexpr int kValues = 0, kIndex = kValues + kOutputTiles * kDepthTiles * kSemiValueBytes;
  static constexpr int kX = kIndex + kOutputTiles * kDepthTiles * kSemiIndexBytes;
  static constexpr int kStageBytes = kX + kWarpsK * kRows * 128;
  using Sums = StagedSums<kRows, kOutputs, kOutputs + 4, kWarpsK>;
  static constexpr int kBytes = kStages * kStageBytes > Sums::kBytes ? kStages * kStageBytes : Sums::kBytes;
};

template <typename Tile>
struct SemiLoader {
  const SemiArgs& a;
  int64_t first_tile, first_row;  // the block's outputs and rows of activations

  // Tiles right of the last are zeros. Tiles below the last give sums that nobody stores; the index is a real one in
  // any case, as mma.sp needs increasing positions.
  __device__ __forceinline__ void weights(uint32_t stage, int64_t step) const {
    constexpr int kTiles = Tile::kOutputTiles * Tile::kDepthTiles;
    constexpr int kChunks = kSemiValueBytes / kChunk, kIndexChunks = kSemiIndexBytes / kChunk;
    for (int i = static_cast<int>(threadIdx.x); i < kTiles * kChunks; i += Tile::kThreads) {
      const int tile = i / kChunks, chunk = i % kChunks;
      const uint32_t to = stage + Tile::kValues + tile * kSemiValueBytes + tile_offset<64>(chunk / 4, chunk % 4);
      ptx::copy_async_16(to, static_cast<const char*>(a.values) + at(tile, step) * kSemiValueBytes + chunk * kChunk,
                         step * Tile::kDepthTiles + tile % Tile::kDepthTiles < a.tile_columns ? kChunk : 0);
    }
    for (int i = static_cast<int>(threadIdx.x); i < kTiles * kIndexChunks; i += Tile::kThreads) {
      const int tile = i / kIndexChunks, offset = i % kIndexChunks * kChunk;
      ptx::copy_async_16(stage + Tile::kIndex + tile * kSemiIndexBytes + offset,
                         a.index + at(tile, step) * kSemiIndexBytes + offset);
    }
  }

  // Tile `tile` of a step, or the nearest there is.
  __device__ __forceinline__ int64_t at(int tile, int64_t step) const {
    const int64_t row = min(first_tile + tile / Tile::kDepthTiles, a.tile_rows - 1);
    return row * a.tile_columns + min(step * Tile::kDepthTiles + tile % Tile::kDepthTiles, a.tile_columns - 1);
  }

  __device__ __forceinline__ void activations(uint32_t stage, int64_t step) const {
    constexpr int kPerRow = Tile::kDepth / 8;
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kRows * kPerRow; i += Tile::kThreads) {
      const int row = i / kPerRow, chunk = i % kPerRow;
      const int64_t m = first_row + row, k = step * Tile::kDepth + chunk * 8;
      const bool inside = m < a.m && k < a.k;
      const uint32_t to = stage + Tile::kX + chunk / 8 * (Tile::kRows * 128) + tile_offset<128>(row, chunk % 8);
      ptx::copy_async_16(to, static_cast<const uint16_t*>(a.x) + (inside ? m * a.k + k : 0), inside ? kChunk : 0);
    }
  }
};

// A warp's share of a stage: its tiles by its rows by 64 inputs.
template <DType D, typename Tile>
__device__ __forceinline__ void multiply_stage(const unsigned char* memory, uint32_t stage_offset, int warp_tile,
                                               int warp_row, int slice,
                                               float (&sums)[2 * Tile::kWarpTiles][Tile::kWarpFragments][4]) {
  constexpr int kTiles = Tile::kWarpTiles;
  const int lane = static_cast<int>(threadIdx.x % 32), eighth = lane / 8, in_eighth = lane % 8;
  const uint32_t stage = ptx::shared_address(memory) + stage_offset;
#pragma unroll
  for (int q = 0; q < 2; ++q) {  // 32 inputs
    uint32_t a[2 * kTiles][4], metadata[kTiles];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const int tile = (warp_tile + i) * Tile::kDepthTiles + 2 * slice + q;
      const uint32_t values = stage + Tile::kValues + tile * kSemiValueBytes;
#pragma unroll
      for (int h = 0; h < 2; ++h)
        ptx::load_matrix_transposed(a[2 * i + h],
                                    values + tile_offset<64>(eighth / 2 * 8 + in_eighth, 2 * h + eighth % 2));
      const uint32_t* words =
          reinterpret_cast<const uint32_t*>(memory + stage_offset + Tile::kIndex + tile * kSemiIndexBytes);
      const int output = lane % 4 / 2 * 16 + lane / 4;
      metadata[i] = __byte_perm(words[output], words[output + 8], lane % 2 ? 0x7632 : 0x5410);
    }
    const uint32_t x = stage + Tile::kX + slice * (Tile::kRows * 128);
#pragma unroll
    for (int f = 0; f < Tile::kWarpFragments; ++f) {
      uint32_t b[4];
      ptx::load_matrix(b, x + tile_offset<128>(warp_row + f * 8 + in_eighth, 4 * q + eighth));
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        FloatElement<D>::template multiply_sparse<0>(sums[2 * i][f], a[2 * i], b, metadata[i]);
        FloatElement<D>::template multiply_sparse<1>(sums[2 * i + 1][f], a[2 * i + 1], b, metadata[i]);
      }
    }
  }
}

template <DType D, typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kMinBlocks) semi_sparse_linear_kernel(SemiArgs args) {
  unsigned char* const memory = dynamic_shared<unsigned char>();
  const uint32_t stages = ptx::shared_address(memory);
  const TileOrder order(static_cast<int>(blockIdx.x), args.row_blocks, args.output_blocks);
  const SemiLoader<Tile> loader{args, int64_t{order.column} * Tile::kOutputTiles, int64_t{order.row} * Tile::kRows};
  const int64_t steps = ceil_div(args.k, Tile::kDepth);
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int slice = warp % Tile::kWarpSlices, rest = warp / Tile::kWarpSlices;
  const int warp_row = rest % Tile::kWarpColumns * Tile::kWarpFragments * 8;
  const int warp_tile = rest / Tile::kWarpColumns * Tile::kWarpTiles;

  const auto load = [&](int64_t step) {
    const uint32_t stage = stages + static_cast<uint32_t>(step % Tile::kStages) * Tile::kStageBytes;
    if (step < steps) {
      loader.weights(stage, step);
      loader.activations(stage, step);
    }
    ptx::commit_async();
  };
  float sums[2 * Tile::kWarpTiles][Tile::kWarpFragments][4] = {};
  for (int s = 0; s < Tile::kStages - 1; ++s) load(s);
  for (int64_t step = 0; step < steps; ++step) {
    ptx::wait_async<Tile::kStages - 2>();
    __syncthreads();  // everybody's copies are here, and nobody reads any more what the next ones overwrite
    load(step + Tile::kStages - 1);
    const uint32_t stage = static_cast<uint32_t>(step % Tile::kStages) * Tile::kStageBytes;
    multiply_stage<D, Tile>(memory, stage, warp_tile, warp_row, slice, sums);
  }

  __syncthreads();  // the stages' memory is free
  const typename Tile::Sums staged{reinterpret_cast<float*>(memory)};
#pragma unroll
  for (int i = 0; i < 2 * Tile::kWarpTiles; ++i)
#pragma unroll
    for (int f = 0; f < Tile::kWarpFragments; ++f)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        *staged.at(slice, warp_row + f * 8 + lane % 4 * 2 + j % 2, warp_tile * kSemi + i * 16 + lane / 4 + j / 2 * 8) =
            sums[i][f][j];
  __syncthreads();
  staged.template store<D, Tile::kThreads>(static_cast<typename FloatElement<D>::Type*>(args.out), args.bias,
                                           loader.first_row, int64_t{order.column} * Tile::kOutputs, args.m, args.n);
}

// Outputs x rows; shared memory per block.
using FewRows = SemiTile<1, 1, 4, 1, 2, 5, 2>;     // 32 x 16, K split among 4 warps; 5 stages, 85 KiB
using SomeRows = SemiTile<4, 1, 1, 1, 8, 4, 2>;    // 128 x 64; 4 stages, 68 KiB
using MediumTile = SemiTile<2, 2, 1, 2, 8, 3, 2>;  // 128 x 128; 3 stages, 75 KiB: every architecture has it
using LargeTile = SemiTile<4, 2, 1, 2, 8, 4, 1>;   // 256 x 128; 4 stages, 136 KiB: sm_80, sm_90, sm_100

template <DType D, typename Tile>
void launch_tile(SemiArgs args, cudaStream_t stream) {
  args.output_blocks = static_cast<int>(ceil_div(args.n, Tile::kOutputs));
  args.row_blocks = static_cast<int>(ceil_div(args.m, Tile::kRows));
  const unsigned blocks = static_cast<unsigned>(args.output_blocks) * static_cast<unsigned>(args.row_blocks);
  launch("semi_sparse_linear", semi_sparse_linear_kernel<D, Tile>, {blocks, Tile::kThreads, Tile::kBytes, stream},
         args);
}

inline SemiShape choose_shape(const SemiArgs& a, int device) {
  if (a.m <= FewRows::kRows) return SemiShape::few_rows;
  if (a.m <= SomeRows::kRows) return SemiShape::some_rows;
  const int64_t large = ceil_div(a.n, LargeTile::kOutputs) * ceil_div(a.m, LargeTile::kRows);
  const bool fits = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device) >= LargeTile::kBytes;
  // A wave of large blocks that leaves multiprocessors idle is no gain.
  return fits && large >= device_attribute(cudaDevAttrMultiProcessorCount, device) ? SemiShape::large
                                                                                   : SemiShape::medium;
}

template <DType D>
void launch_shape(const SemiArgs& args, SemiShape shape, int device, cudaStream_t stream) {
  switch (shape == SemiShape::automatic ? choose_shape(args, device) : shape) {
    case SemiShape::few_rows:
      return launch_tile<D, FewRows>(args, stream);
    case SemiShape::some_rows:
      return launch_tile<D, SomeRows>(args, stream);
    case SemiShape::large:
      return launch_tile<D, LargeTile>(args, stream);
    default:
      return launch_tile<D, MediumTile>(args, stream);
  }
}

}  // namespace

}  // namespace bigmodel
