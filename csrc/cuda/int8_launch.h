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

// int8_tiles_sm80.cu: any M, by tiles of this many rows and columns. With several splits of K, `partial` [splits,M,N]
// takes their sums, and a second launch adds them up in order.
enum class Int8Tile : int { small, medium, large };
struct TileSize {
  int m, n, k;
};
constexpr TileSize kTileSizes[] = {{64, 64, 128}, {128, 128, 64}, {128, 256, 64}};
void launch_int8_tiles(Int8Tile tile, const Int8Operands& o, const Int8Result& r, int splits, int32_t* partial,
                       cudaStream_t stream);

}  // namespace bigmodel
