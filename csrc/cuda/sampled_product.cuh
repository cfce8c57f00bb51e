// The gradients of stored weights: dvalues[k][n] = sum over m of x[m][k] * grad[m][n], where weights are stored.
//
// A block of threads has 64 inputs: of one stored block of 64, of two of 32 or of four of 16, each with its own panels
// of x and of grad; with 2:4 weights, of two by two tiles, whose dense gradient is taken and of which the index picks
// half. Four warps have 16 inputs each. Both operands are read transposed: m, their rows, is what is summed over.
#pragma once

#include "block_sparse_launch.h"
#include "shared_tile.cuh"

namespace bigmodel {

namespace {

template <DType D, int kBlockSize, bool kTwoFour>
struct SampledTile {
  using T = typename FloatElement<D>::Type;
  static constexpr bool kSemi = kTwoFour;
  static constexpr int kSize = kBlockSize, kThreads = 128, kWidth = 64, kBlocks = kWidth / kSize;
  static constexpr int kElements = kChunk / static_cast<int>(sizeof(T));
  static constexpr int kRowBytes = kWidth * static_cast<int>(sizeof(T)), kDepth = 32;  // rows of x in a stage
  static constexpr int kGrad = kDepth * kRowBytes, kStageBytes = 2 * kGrad, kStages = 4;
  static constexpr int kStride = kWidth + 8;
  static constexpr int kBytes = kStages * kStageBytes;
  static_assert(!kSemi || kSize == 64, "2:4 weights are taken as dense blocks of 64.");
  static_assert(kWidth * kStride * 4 <= kBytes, "The dense gradient takes the stages' place.");
};

// Where a stored block stands. Damaged indices name no memory that is not theirs.
struct Place {
  int64_t block, row, column;  // block < 0: there is none
};

template <typename Tile>
__device__ __forceinline__ Place place_of(const SampledArgs& a, int sub) {
  const int64_t i = int64_t{blockIdx.x} * Tile::kBlocks + sub;
  if constexpr (Tile::kSemi) {
    const int64_t columns = ceil_div(a.tile_columns, 2);
    return {i, i / columns, i % columns};
  } else {
    if (i >= a.blocks) return {-1, 0, 0};
    int64_t low = 0, high = a.block_rows - 1;  // the last row that begins at or before i
    while (low < high) {
      const int64_t middle = (low + high + 1) / 2;
      if (__ldg(a.crow + middle) <= i)
        low = middle;
      else
        high = middle - 1;
    }
    return {i, low, __ldg(a.col + i)};
  }
}

template <typename Tile>
__device__ __forceinline__ void load_rows(uint32_t to, const void* from, int64_t m, int64_t width, int64_t first,
                                          int chunk, int64_t column) {
  using T = typename Tile::T;
  constexpr int kPerRow = Tile::kRowBytes / kChunk;
  for (int r = static_cast<int>(threadIdx.x) / kPerRow; r < Tile::kDepth; r += Tile::kThreads / kPerRow) {
    const bool inside = first + r < m && column >= 0 && column < width;
    ptx::copy_async_16(to + tile_offset<Tile::kRowBytes>(r, chunk),
                       static_cast<const T*>(from) + (inside ? (first + r) * width + column : 0), inside ? kChunk : 0);
  }
}

template <typename Tile>
using SampledSums = float[Tile::kSize / 8][4];

// A warp's 16 inputs, from `input` on, by its block's outputs, from `output` on.
template <DType D, typename Tile>
__device__ __forceinline__ void multiply_stage(uint32_t x, uint32_t grad, int input, int output,
                                               SampledSums<Tile>& sums) {
  const int lane = static_cast<int>(threadIdx.x % 32), eighth = lane / 8, in_eighth = lane % 8;
  constexpr int kBytes = Tile::kRowBytes;
#pragma unroll
  for (int m = 0; m < Tile::kDepth; m += 16) {
    uint32_t a[4];
    ptx::load_matrix_transposed(a, x + tile_offset<kBytes>(m + eighth / 2 * 8 + in_eighth, input / 8 + eighth % 2));
#pragma unroll
    for (int j = 0; j < Tile::kSize; j += 16) {
      uint32_t b[4];
      const int chunk = (output + j) / 8 + eighth / 2;
      ptx::load_matrix_transposed(b, grad + tile_offset<kBytes>(m + eighth % 2 * 8 + in_eighth, chunk));
      const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
      FloatElement<D>::multiply(sums[j / 8], a, left);
      FloatElement<D>::multiply(sums[j / 8 + 1], a, right);
    }
  }
}

template <typename Tile>
__device__ __forceinline__ void multiply_floats(const unsigned char* x, const unsigned char* grad, int input,
                                                int output, SampledSums<Tile>& sums) {
  const int lane = static_cast<int>(threadIdx.x % 32), k = input + lane / 4;
  const auto at = [](const unsigned char* tile, int r, int c) {
    return *reinterpret_cast<const float*>(tile + tile_offset<Tile::kRowBytes>(r, c / 4) + c % 4 * 4);
  };
#pragma unroll 4
  for (int m = 0; m < Tile::kDepth; ++m) {
    const float upper = at(x, m, k), lower = at(x, m, k + 8);
#pragma unroll
    for (int j = 0; j < Tile::kSize / 8; ++j) {
      const int n = output + j * 8 + lane % 4 * 2;
      const float g0 = at(grad, m, n), g1 = at(grad, m, n + 1);
      sums[j][0] = fmaf(upper, g0, sums[j][0]);
      sums[j][1] = fmaf(upper, g1, sums[j][1]);
      sums[j][2] = fmaf(lower, g0, sums[j][2]);
      sums[j][3] = fmaf(lower, g1, sums[j][3]);
    }
  }
}

// Zeros beyond N and K, whatever the activations are: what a block holds there stays 0 in training.
template <DType D, typename Tile>
__device__ __forceinline__ void store_block(const SampledArgs& a, const Place& place, int input,
                                            const SampledSums<Tile>& sums) {
  if (place.block < 0) return;
  const int lane = static_cast<int>(threadIdx.x % 32);
  auto* to = static_cast<typename Tile::T*>(a.out) + place.block * (Tile::kSize * Tile::kSize);
#pragma unroll
  for (int j = 0; j < Tile::kSize / 8; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int k = input % Tile::kSize + lane / 4 + e / 2 * 8, n = j * 8 + lane % 4 * 2 + e % 2;
      const bool inside = place.row * Tile::kSize + n < a.n && place.column * Tile::kSize + k < a.k;
      to[k * Tile::kSize + n] = FloatElement<D>::narrow(inside ? sums[j][e] : 0.0f);
    }
}

// The same for 2:4 weights, of the dense gradient [64 inputs][64 outputs].
template <DType D, typename Tile>
__device__ __forceinline__ void store_tiles(const SampledArgs& a, const Place& place, const float* dense) {
  for (int i = static_cast<int>(threadIdx.x); i < 4 * 512; i += Tile::kThreads) {
    const int n = i % 32, stored = i / 32 % 16, tile = i / 512;
    const int64_t row = place.row * 2 + tile / 2, column = place.column * 2 + tile % 2;
    if (row >= a.tile_rows || column >= a.tile_columns) continue;
    const int64_t at = row * a.tile_columns + column;
    const uint32_t word = __ldg(reinterpret_cast<const uint32_t*>(a.index) + at * 32 + n);
    const int k = stored / 2 * 4 + static_cast<int>(word >> (2 * stored) & 3);
    const bool inside = row * 32 + n < a.n && column * 32 + k < a.k;
    const float sum = dense[(tile % 2 * 32 + k) * Tile::kStride + tile / 2 * 32 + n];
    static_cast<typename Tile::T*>(a.out)[at * 512 + stored * 32 + n] = FloatElement<D>::narrow(inside ? sum : 0.0f);
  }
}

template <DType D, typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, 3) sampled_product_kernel(SampledArgs args) {
  unsigned char* const memory = dynamic_shared<unsigned char>();
  const uint32_t address = ptx::shared_address(memory);
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32), input = warp * 16;
  const Place own = place_of<Tile>(args, input / Tile::kSize);  // whose gradient the warp computes
  // What the thread copies: always the same columns.
  const int chunk = static_cast<int>(threadIdx.x) % (Tile::kRowBytes / kChunk);
  const int sub = chunk * Tile::kElements / Tile::kSize, in_block = chunk * Tile::kElements % Tile::kSize;
  const Place copied = place_of<Tile>(args, sub);
  const int64_t x_column = copied.block < 0 ? -1 : copied.column * Tile::kSize + in_block;
  const int64_t grad_column = copied.block < 0 ? -1 : copied.row * Tile::kSize + in_block;
  const int64_t steps = ceil_div(args.m, Tile::kDepth);

  const auto load = [&](int64_t step) {
    const uint32_t stage = address + static_cast<uint32_t>(step % Tile::kStages) * Tile::kStageBytes;
    if (step < steps) {
      load_rows<Tile>(stage, args.x, args.m, args.x_width, step * Tile::kDepth, chunk, x_column);
      load_rows<Tile>(stage + Tile::kGrad, args.grad, args.m, args.grad_width, step * Tile::kDepth, chunk, grad_column);
    }
    ptx::commit_async();
  };
  SampledSums<Tile> sums = {};
  for (int s = 0; s < Tile::kStages - 1; ++s) load(s);
  for (int64_t step = 0; step < steps; ++step) {
    ptx::wait_async<Tile::kStages - 2>();
    __syncthreads();  // everybody's copies are here, and nobody reads any more what the next ones overwrite
    load(step + Tile::kStages - 1);
    const uint32_t stage = static_cast<uint32_t>(step % Tile::kStages) * Tile::kStageBytes;
    const int output = input / Tile::kSize * Tile::kSize;
    if constexpr (D == DType::f32)
      multiply_floats<Tile>(memory + stage, memory + stage + Tile::kGrad, input, output, sums);
    else
      multiply_stage<D, Tile>(address + stage, address + stage + Tile::kGrad, input, output, sums);
  }

  if constexpr (Tile::kSemi) {
    __syncthreads();  // the stages' memory is free
    float* const dense = reinterpret_cast<float*>(memory);
#pragma unroll
    for (int j = 0; j < Tile::kSize / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        dense[(input + lane / 4 + e / 2 * 8) * Tile::kStride + j * 8 + lane % 4 * 2 + e % 2] = sums[j][e];
    __syncthreads();
    store_tiles<D, Tile>(args, own, dense);
  } else {
    store_block<D, Tile>(args, own, input, sums);
  }
}

template <DType D, int kSize, bool kSemi>
void launch_sampled(const SampledArgs& args, const char* name, cudaStream_t stream) {
  using Tile = SampledTile<D, kSize, kSemi>;
  const int64_t blocks =
      kSemi ? ceil_div(args.tile_rows, 2) * ceil_div(args.tile_columns, 2) : ceil_div(args.blocks, Tile::kBlocks);
  launch(name, sampled_product_kernel<D, Tile>, {static_cast<unsigned>(blocks), Tile::kThreads, Tile::kBytes, stream},
         args);
}

}  // namespace

}  // namespace bigmodel
