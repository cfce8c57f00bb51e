// The product with 2:4 weights on tensor cores. The sparse operand of mma.sp is the left one, so a block computes
// W x^T: its tile's rows are outputs, its columns rows of activations.
//
// The formats serve as they are. 16-bit weights lie in tiles of 32 outputs by 32 inputs, outputs side by side and the
// 16 stored values below one another: ldmatrix, transposing, gives A's fragments. Int8 weights lie the other way, an
// output's 16 stored values side by side: ldmatrix gives them as they are. An output's index word has its 16 positions
// in the order of mma.sp's metadata. For int8 it is a lane's word; 16-bit metadata want the lower halves of the words
// of outputs g and g + 8 in one lane and the upper halves in the next, one byte permutation, and a word then serves two
// instructions, for the upper and the lower 16 outputs of a tile (the selector).
//
// Per stage of 128 bytes of x's rows: tiles of values, their index, and those rows; cp.async brings what comes kStages
// - 1 stages later. Few rows of activations leave few tiles: then the warps of a block share a tile and split K.
#pragma once

#include "semi_sparse_launch.h"
#include "shared_tile.cuh"

namespace bigmodel {

namespace {

constexpr int kSemi = 32, kSemiIndexBytes = kSemi * 4;  // outputs, and inputs, of a tile of the format

// What differs between the dtypes. A stage's slice is 128 bytes of x's rows; half of that goes through one mma.sp.
template <DType D>
struct SemiElement {
  using Sum = float;
  static constexpr int kInputs = 64, kTileBytes = 1024;  // of a slice; of a tile's values

  static __device__ __forceinline__ uint32_t value_offset(int chunk) { return tile_offset<64>(chunk / 4, chunk % 4); }
  static __device__ __forceinline__ uint32_t index_offset(int, int chunk) { return chunk * kChunk; }

  // A's fragments for the upper and the lower 16 outputs of the tiles from `values` on, and the instructions' metadata.
  static __device__ __forceinline__ void load(uint32_t (&a)[2][4], uint32_t (&metadata)[2], uint32_t values,
                                              const unsigned char* index, int half, int lane) {
#pragma unroll
    for (int h = 0; h < 2; ++h)
      ptx::load_matrix_transposed(
          a[h], values + half * kTileBytes + tile_offset<64>(lane / 16 * 8 + lane % 8, 2 * h + lane / 8 % 2));
    const uint32_t* words = reinterpret_cast<const uint32_t*>(index + half * kSemiIndexBytes);
    const int output = lane % 4 / 2 * 16 + lane / 4;
    metadata[0] = metadata[1] = __byte_perm(words[output], words[output + 8], lane % 2 ? 0x7632 : 0x5410);
  }

  template <int kLower>
  static __device__ __forceinline__ void multiply(Sum (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                                                  uint32_t metadata) {
    FloatElement<D>::template multiply_sparse<kLower>(d, a, b, metadata);
  }
};

template <>
struct SemiElement<DType::i8> {
  using Sum = int32_t;
  static constexpr int kInputs = 128, kTileBytes = 512;

  static __device__ __forceinline__ uint32_t value_offset(int chunk) { return chunk * kChunk; }
  // The halves of every other tile's index change places: lanes read two tiles at a time, from all banks.
  static __device__ __forceinline__ uint32_t index_offset(int tile, int chunk) {
    return (chunk ^ tile % 2 * 4) * kChunk;
  }

  static __device__ __forceinline__ void load(uint32_t (&a)[2][4], uint32_t (&metadata)[2], uint32_t values,
                                              const unsigned char* index, int half, int lane) {
    const int tile = 2 * half + lane / 16;
    const uint32_t* words = reinterpret_cast<const uint32_t*>(index + (2 * half + lane % 4 / 2) * kSemiIndexBytes);
    const int output = lane / 4 + lane % 2 * 8;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      ptx::load_matrix(a[h], values + tile * kTileBytes + (16 * h + lane / 8 % 2 * 8 + lane % 8) * kChunk);
      metadata[h] = words[(16 * h + output) ^ lane % 4 / 2 * 16];
    }
  }

  template <int kLower>
  static __device__ __forceinline__ void multiply(Sum (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                                                  uint32_t metadata) {
    ptx::mma_sparse_s8(d, a, b, metadata);
  }
};

// kWarpsN x kWarpsM x kWarpsK warps, each with kTiles x 32 outputs by kFragments x 8 rows of activations.
template <DType D, int kWarpsN, int kWarpsM, int kWarpsK, int kTiles, int kFragments, int kStageCount, int kBlocks>
struct SemiTile {
  using Element = SemiElement<D>;
  static constexpr int kStages = kStageCount, kMinBlocks = kBlocks;
  static constexpr int kWarpColumns = kWarpsM, kWarpSlices = kWarpsK, kWarpTiles = kTiles, kWarpFragments = kFragments;
  static constexpr int kThreads = 32 * kWarpsN * kWarpsM * kWarpsK;
  static constexpr int kOutputTiles = kWarpsN * kTiles, kOutputs = kOutputTiles * kSemi;
  static constexpr int kRows = kWarpsM * kFragments * 8;
  static constexpr int kDepth = Element::kInputs * kWarpsK, kDepthTiles = kDepth / kSemi;
  // Of a stage.
  static constexpr int kValues = 0, kIndex = kValues + kOutputTiles * kDepthTiles * Element::kTileBytes;
  static constexpr int kX = kIndex + kOutputTiles * kDepthTiles * kSemiIndexBytes;
  static constexpr int kStageBytes = kX + kWarpsK * kRows * 128;
  using Sums = StagedSums<typename Element::Sum, kRows, kOutputs, kOutputs + 4, kWarpsK>;
  static constexpr int kBytes = kStages * kStageBytes > Sums::kBytes ? kStages * kStageBytes : Sums::kBytes;
};

template <typename Tile>
struct SemiLoader {
  using Element = typename Tile::Element;
  static constexpr int kTiles = Tile::kOutputTiles * Tile::kDepthTiles;
  const SemiArgs& a;
  int64_t first_tile, first_row;  // the block's outputs and rows of activations

  // Tiles right of the last are zeros. Tiles below the last give sums that nobody stores; the index is a real one in
  // any case, as mma.sp needs increasing positions.
  __device__ __forceinline__ void weights(uint32_t stage, int64_t step) const {
    constexpr int kChunks = Element::kTileBytes / kChunk, kIndexChunks = kSemiIndexBytes / kChunk;
    for (int i = static_cast<int>(threadIdx.x); i < kTiles * kChunks; i += Tile::kThreads) {
      const int tile = i / kChunks, chunk = i % kChunks;
      const uint32_t to = stage + Tile::kValues + tile * Element::kTileBytes + Element::value_offset(chunk);
      ptx::copy_async_16(to, static_cast<const char*>(a.values) + at(tile, step) * Element::kTileBytes + chunk * kChunk,
                         step * Tile::kDepthTiles + tile % Tile::kDepthTiles < a.tile_columns ? kChunk : 0);
    }
    for (int i = static_cast<int>(threadIdx.x); i < kTiles * kIndexChunks; i += Tile::kThreads) {
      const int tile = i / kIndexChunks, chunk = i % kIndexChunks;
      ptx::copy_async_16(stage + Tile::kIndex + tile * kSemiIndexBytes + Element::index_offset(tile, chunk),
                         a.index + at(tile, step) * kSemiIndexBytes + chunk * kChunk);
    }
  }

  // Tile `tile` of a step, or the nearest there is.
  __device__ __forceinline__ int64_t at(int tile, int64_t step) const {
    const int64_t row = min(first_tile + tile / Tile::kDepthTiles, a.tile_rows - 1);
    return row * a.tile_columns + min(step * Tile::kDepthTiles + tile % Tile::kDepthTiles, a.tile_columns - 1);
  }

  __device__ __forceinline__ void activations(uint32_t stage, int64_t step) const {
    constexpr int kPerRow = Tile::kWarpSlices * 8, kElementBytes = 128 / Element::kInputs;
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kRows * kPerRow; i += Tile::kThreads) {
      const int row = i / kPerRow, chunk = i % kPerRow;
      const int64_t m = first_row + row, k = step * Tile::kDepth + chunk * (kChunk / kElementBytes);
      const bool inside = m < a.m && k < a.k;
      const uint32_t to = stage + Tile::kX + chunk / 8 * (Tile::kRows * 128) + tile_offset<128>(row, chunk % 8);
      ptx::copy_async_16(to, static_cast<const char*>(a.x) + (inside ? (m * a.k + k) * kElementBytes : 0),
                         inside ? kChunk : 0);
    }
  }
};

template <typename Tile>
using SemiSums = typename Tile::Element::Sum[2 * Tile::kWarpTiles][Tile::kWarpFragments][4];

// A warp's share of a stage: its tiles by its rows by a slice.
template <typename Tile>
__device__ __forceinline__ void multiply_stage(const unsigned char* memory, uint32_t stage_offset, int warp_tile,
                                               int warp_row, int slice, SemiSums<Tile>& sums) {
  using Element = typename Tile::Element;
  const int lane = static_cast<int>(threadIdx.x % 32), first = slice * (Tile::kDepthTiles / Tile::kWarpSlices);
  const uint32_t stage = ptx::shared_address(memory) + stage_offset;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t a[Tile::kWarpTiles][2][4], metadata[Tile::kWarpTiles][2];
#pragma unroll
    for (int i = 0; i < Tile::kWarpTiles; ++i) {
      const int tile = (warp_tile + i) * Tile::kDepthTiles + first;
      Element::load(a[i], metadata[i], stage + Tile::kValues + tile * Element::kTileBytes,
                    memory + stage_offset + Tile::kIndex + tile * kSemiIndexBytes, half, lane);
    }
    const uint32_t x = stage + Tile::kX + slice * (Tile::kRows * 128);
#pragma unroll
    for (int f = 0; f < Tile::kWarpFragments; ++f) {
      uint32_t b[4];
      ptx::load_matrix(b, x + tile_offset<128>(warp_row + f * 8 + lane % 8, 4 * half + lane / 8));
#pragma unroll
      for (int i = 0; i < Tile::kWarpTiles; ++i) {
        Element::template multiply<0>(sums[2 * i][f], a[i][0], b, metadata[i][0]);
        Element::template multiply<1>(sums[2 * i + 1][f], a[i][1], b, metadata[i][1]);
      }
    }
  }
}

// `store(sums, first row, first output)` takes a tile's sums to the output, with all threads.
template <typename Tile, typename Store>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kMinBlocks)
    semi_sparse_product_kernel(SemiArgs args, Store store) {
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
  SemiSums<Tile> sums = {};
  for (int s = 0; s < Tile::kStages - 1; ++s) load(s);
  for (int64_t step = 0; step < steps; ++step) {
    ptx::wait_async<Tile::kStages - 2>();
    __syncthreads();  // everybody's copies are here, and nobody reads any more what the next ones overwrite
    load(step + Tile::kStages - 1);
    const uint32_t stage = static_cast<uint32_t>(step % Tile::kStages) * Tile::kStageBytes;
    multiply_stage<Tile>(memory, stage, warp_tile, warp_row, slice, sums);
  }

  __syncthreads();  // the stages' memory is free
  const typename Tile::Sums staged{reinterpret_cast<typename Tile::Element::Sum*>(memory)};
#pragma unroll
  for (int i = 0; i < 2 * Tile::kWarpTiles; ++i)
#pragma unroll
    for (int f = 0; f < Tile::kWarpFragments; ++f)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        *staged.at(slice, warp_row + f * 8 + lane % 4 * 2 + j % 2, warp_tile * kSemi + i * 16 + lane / 4 + j / 2 * 8) =
            sums[i][f][j];
  __syncthreads();
  store.template operator()<Tile>(staged, loader.first_row, int64_t{order.column} * Tile::kOutputs);
}

// Outputs x rows; the stages take 85 to 90 KiB, 68 to 72, 75 to 78 (every architecture has that), and 136 to 144.
template <DType D>
using FewRows = SemiTile<D, 1, 1, 4, 1, 2, 5, 2>;  // 32 x 16, K split among 4 warps
template <DType D>
using SomeRows = SemiTile<D, 4, 1, 1, 1, 8, 4, 2>;  // 128 x 64
template <DType D>
using MediumTile = SemiTile<D, 2, 2, 1, 2, 8, 3, 2>;  // 128 x 128
template <DType D>
using LargeTile = SemiTile<D, 4, 2, 1, 2, 8, 4, 1>;  // 256 x 128, for sm_80, sm_90 and sm_100

template <typename Tile, typename Store>
void launch_semi_tile(SemiArgs args, const Store& store, const char* name, cudaStream_t stream) {
  args.output_blocks = static_cast<int>(ceil_div(args.n, Tile::kOutputs));
  args.row_blocks = static_cast<int>(ceil_div(args.m, Tile::kRows));
  const unsigned blocks = static_cast<unsigned>(args.output_blocks) * static_cast<unsigned>(args.row_blocks);
  launch(name, semi_sparse_product_kernel<Tile, Store>, {blocks, Tile::kThreads, Tile::kBytes, stream}, args, store);
}

template <DType D>
SemiShape choose_shape(const SemiArgs& a, int device) {
  if (a.m <= FewRows<D>::kRows) return SemiShape::few_rows;
  if (a.m <= SomeRows<D>::kRows) return SemiShape::some_rows;
  const int64_t large = ceil_div(a.n, LargeTile<D>::kOutputs) * ceil_div(a.m, LargeTile<D>::kRows);
  const bool fits = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device) >= LargeTile<D>::kBytes;
  // A wave of large blocks that leaves multiprocessors idle is no gain.
  return fits && large >= device_attribute(cudaDevAttrMultiProcessorCount, device) ? SemiShape::large
                                                                                   : SemiShape::medium;
}

template <DType D, typename Store>
void launch_semi_product(const SemiArgs& args, const Store& store, const char* name, SemiShape shape, int device,
                         cudaStream_t stream) {
  switch (shape == SemiShape::automatic ? choose_shape<D>(args, device) : shape) {
    case SemiShape::few_rows:
      return launch_semi_tile<FewRows<D>>(args, store, name, stream);
    case SemiShape::some_rows:
      return launch_semi_tile<SomeRows<D>>(args, store, name, stream);
    case SemiShape::large:
      return launch_semi_tile<LargeTile<D>>(args, store, name, stream);
    default:
      return launch_semi_tile<MediumTile<D>>(args, store, name, stream);
  }
}

}  // namespace

}  // namespace bigmodel
