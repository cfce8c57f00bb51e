// Tiles in shared memory, and the way of a tile of sums to the output: what the sparse products share.
#pragma once

#include "float_element.h"
#include "launch.h"
#include "ptx_async.h"

namespace bigmodel {

constexpr int kChunk = 16;  // bytes that one asynchronous copy moves, and one row of an 8x8 matrix

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where chunk `chunk` of row `row` lies in a tile whose rows have kRowBytes bytes. Chunks change places within their
// row so that eight rows in a line have theirs in eight different quarters of the banks: ldmatrix has no conflicts.
template <int kRowBytes>
__device__ __forceinline__ uint32_t tile_offset(int row, int chunk) {
  constexpr int kChunks = kRowBytes / kChunk, kRowsPerLine = kRowBytes >= 128 ? 1 : 128 / kRowBytes;
  constexpr int kMask = (kChunks < 8 ? kChunks : 8) - 1;
  static_assert((kChunks & (kChunks - 1)) == 0, "A row is 1, 2, 4, ... chunks.");
  return static_cast<uint32_t>(row * kRowBytes + (chunk ^ (row / kRowsPerLine & kMask)) * kChunk);
}

// Sums on their way to the output: [kSlabs][kRows][kStride], row by row as the output lies. What the slabs hold is
// added, in their order.
template <typename Sum, int kRows, int kColumns, int kStride, int kSlabs>
struct StagedSums {
  static constexpr int kBytes = kSlabs * kRows * kStride * 4;
  static_assert(kStride % 4 == 0, "Rows are read in 16-byte pieces.");

  Sum* sums;

  __device__ __forceinline__ Sum* at(int slab, int row, int column) const {
    return sums + (slab * kRows + row) * kStride + column;
  }

  __device__ __forceinline__ Sum total(int row, int column) const {
    Sum sum = *at(0, row, column);
#pragma unroll
    for (int s = 1; s < kSlabs; ++s) sum += *at(s, row, column);
    return sum;
  }

  // To out [m][n] from (row, column) on, with bias[n] (null: none) added. All kThreads threads, after a barrier.
  template <DType D, int kThreads>
  __device__ __forceinline__ void store(typename FloatElement<D>::Type* out, const float* bias, int64_t row,
                                        int64_t column, int64_t m, int64_t n) const {
    using T = typename FloatElement<D>::Type;
    constexpr int kVector = kChunk / sizeof(T), kPerRow = kColumns / kVector;
    const bool aligned = n % kVector == 0;
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kPerRow; i += kThreads) {
      const int r = i / kPerRow, c = i % kPerRow * kVector;
      if (row + r >= m || column + c >= n) continue;
      float v[kVector];
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        v[j] = total(r, c + j);
        if (bias && column + c + j < n) v[j] += __ldg(bias + column + c + j);
      }
      T* to = out + (row + r) * n + column + c;
      if (aligned) {
        store_vector<D>(to, v);
      } else {
        for (int j = 0; j < kVector && column + c + j < n; ++j) to[j] = FloatElement<D>::narrow(v[j]);
      }
    }
  }

 private:
  template <DType D, int kVector>
  static __device__ __forceinline__ void store_vector(typename FloatElement<D>::Type* to, const float (&v)[kVector]) {
    if constexpr (D == DType::f32) {
      ptx::store_16(to, __float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3]));
    } else {
      using E = FloatElement<D>;
      ptx::store_16(to, E::narrow(v[0], v[1]), E::narrow(v[2], v[3]), E::narrow(v[4], v[5]), E::narrow(v[6], v[7]));
    }
  }
};

// Output tiles in the order that blocks take them: a few rows of tiles at a time, so that what neighbours read stays in
// the L2 cache.
struct TileOrder {
  static constexpr int kBand = 8;

  int row, column;

  __device__ __forceinline__ TileOrder(int block, int rows, int columns) {
    const int band = block / (kBand * columns), in_band = block % (kBand * columns);
    const int height = min(kBand, rows - band * kBand);
    row = band * kBand + in_band % height;
    column = in_band / height;
  }
};

}  // namespace bigmodel
