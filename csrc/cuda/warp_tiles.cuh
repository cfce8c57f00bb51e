// Tiles of two operands in shared memory and their product by eight warps. A tile's rows are 128 or 256 bytes, in
// chunks of 16 that change places by row, so that eight rows' chunks are in different banks.
#pragma once

#include "elements.h"
#include "ptx_async.h"

namespace bigmodel {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;

template <int kRowBytes>
__device__ __forceinline__ uint32_t place(int row, int chunk) {
  static_assert(kRowBytes % 128 == 0, "Chunks change places within 128 bytes.");
  return static_cast<uint32_t>(row * kRowBytes + (chunk ^ (row & 7)) * 16);
}

// A matrix in global memory, measured in bytes.
struct ByteMatrix {
  const void* p;
  int64_t stride, rows;
  int row_bytes;
};

// kRows rows of kRowBytes from (row, byte) on; zeros beyond the matrix.
template <int kRows, int kRowBytes>
__device__ __forceinline__ void copy_tile(uint32_t to, const ByteMatrix& m, int64_t row, int byte) {
  constexpr int kChunks = kRowBytes / 16;
#pragma unroll
  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    const int r = i / kChunks, chunk = i % kChunks, first = byte + 16 * chunk;
    const int bytes = row + r < m.rows ? max(min(m.row_bytes - first, 16), 0) : 0;
    const char* from = static_cast<const char*>(m.p);
    ptx::copy_async_16(to + place<kRowBytes>(r, chunk), bytes ? from + (row + r) * m.stride + first : from, bytes);
  }
}

// Who computes what of an output of kRows x kColumns: a warp has 16 rows and 16 kPairs columns.
template <int kRows, int kColumns>
struct WarpGrid {
  static constexpr int kRowWarps = kRows / 16, kColumnWarps = kWarps / kRowWarps, kPairs = kColumns / kColumnWarps / 16;
  static_assert(kRowWarps * kColumnWarps == kWarps && kPairs >= 1, "Each warp has its part of the output.");

  int warp, lane;
  __device__ __forceinline__ int row_warp() const { return warp / kColumnWarps; }
  __device__ __forceinline__ int pair(int p) const { return kPairs * (warp % kColumnWarps) + p; }
  // Of sum i (0 to 7) of the warp's pair p.
  __device__ __forceinline__ int row(int i) const { return 16 * row_warp() + lane / 4 + i % 4 / 2 * 8; }
  __device__ __forceinline__ int column(int p, int i) const { return 16 * pair(p) + i / 4 * 8 + lane % 4 * 2 + i % 2; }
};

// How an operand's tile lies: kAlong, its rows follow the sum and their bytes the output ("transposed" for ldmatrix),
// or the other way round.
template <int kBytes, bool kAlong>
struct Operand {
  static constexpr int kRowBytes = kBytes;
  static constexpr bool kTransposed = kAlong;
};

// sum += a b over 32 kDepth bytes of the sum's direction.
template <typename T, typename A, typename B, int kDepth, typename Grid, typename Sum>
__device__ __forceinline__ void multiply_tiles(uint32_t a_tile, uint32_t b_tile, const Grid& g,
                                               Sum (&sum)[Grid::kPairs][2][4]) {
  const int lane = g.lane;
#pragma unroll
  for (int k = 0; k < kDepth; ++k) {
    uint32_t a[4];
    if constexpr (A::kTransposed)
      ptx::load_matrix_transposed(
          a, a_tile + place<A::kRowBytes>(16 * k + lane / 16 * 8 + lane % 8, 2 * g.row_warp() + lane / 8 % 2));
    else
      ptx::load_matrix(a, a_tile + place<A::kRowBytes>(16 * g.row_warp() + lane % 16, 2 * k + lane / 16));
#pragma unroll
    for (int p = 0; p < Grid::kPairs; ++p) {
      uint32_t b[4];
      if constexpr (B::kTransposed)
        ptx::load_matrix_transposed(b, b_tile + place<B::kRowBytes>(16 * k + lane % 16, 2 * g.pair(p) + lane / 16));
      else
        ptx::load_matrix(b,
                         b_tile + place<B::kRowBytes>(16 * g.pair(p) + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
      const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
      multiply_tile(T{}, sum[p][0], a, low);
      multiply_tile(T{}, sum[p][1], a, high);
    }
  }
}

// Sums laid out as the output is, so that neighbouring threads finish and store neighbours, in code that exists once.
// `memory` has kBytes; whoever used it before is done. use(row, column, sum) for all of the output.
template <int kRows, int kColumns>
struct OutputTile {
  static constexpr int kStride = kColumns + 8;  // eight rows' pairs in different banks
  static constexpr int kBytes = kRows * kStride * 4;

  template <typename Grid, typename Sum, typename Use>
  static __device__ __forceinline__ void finish_all(void* memory, const Grid& g, const Sum (&sum)[Grid::kPairs][2][4],
                                                    const Use& use) {
    Sum* tile = static_cast<Sum*>(memory);
#pragma unroll
    for (int p = 0; p < Grid::kPairs; ++p)
#pragma unroll
      for (int i = 0; i < 8; ++i) tile[g.row(i) * kStride + g.column(p, i)] = sum[p][i / 4][i % 4];
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < kRows * kColumns; i += kThreads)
      use(i / kColumns, i % kColumns, tile[i / kColumns * kStride + i % kColumns]);
  }
};

}  // namespace
}  // namespace bigmodel
