// Between the host's side of the int8 ops (int8_linear.cpp, quantize_rows.cpp), which nvcc need not see, and the files
// of the kernels.
#pragma once

#include "guard.h"
#include "int8_product.h"

namespace bigmodel {

void launch_quantize_rows(const RowsToQuantize& rows, const QuantizedRows& to, cudaStream_t stream);

// int8_gemv.cu: M <= 4. The rows are quantized in the kernel; o.a is not looked at.
constexpr int kGemvRows = 4;
size_t gemv_shared_bytes(int64_t m, int64_t k);  // what a block needs
void launch_int8_gemv(const RowsToQuantize& rows, const Int8Operands& o, const Int8Result& r, int multiprocessors,
                      cudaStream_t stream);

// int8_skinny.cu: M <= 16. The warps of a block divide K.
constexpr int kSkinnyRows = 16;
void launch_int8_skinny(const Int8Operands& o, const Int8Result& r, bool wide, cudaStream_t stream);

// int8_tiles_sm80.cu: any M, by tiles of this many rows and columns. With several splits of K, r.out is
// int32 [splits,M,N] for the sums of each.
enum class Int8Tile : int { small, medium, large };
struct TileSize {
  int m, n, k;  // k: a step's
};
constexpr TileSize kTileSizes[] = {{64, 64, 128}, {128, 128, 64}, {128, 256, 64}};
void launch_int8_tiles(Int8Tile tile, const Int8Operands& o, const Int8Result& r, int splits, cudaStream_t stream);

// int8_tiles_sm90.cu, compute capability 9.0: any M, N and K > 0 with width 16. Swapped, N is divided into pieces of
// what is said of M and the other way round.
enum class Int8Wgmma : int { swapped, medium, large, largest };
constexpr int kWgmmaTiles = 4;
constexpr TileSize kWgmmaSizes[kWgmmaTiles] = {{64, 128, 128}, {128, 128, 128}, {128, 256, 128}, {256, 192, 128}};
void launch_int8_wgmma(Int8Wgmma tile, const Int8Operands& o, const Int8Result& r, int splits, int multiprocessors,
                       cudaStream_t stream);

// int8_tiles_sm80.cu: the result from the sums [splits,M,N] of parts of K.
void launch_int8_sum_splits(const int32_t* partial, int splits, int m, int n, const Int8Result& r, cudaStream_t stream);

}  // namespace bigmodel
