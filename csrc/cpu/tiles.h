// Tiles: up to 64 rows of a row-major matrix, transposed, so that one column of all of them is contiguous and a kernel
// works on that many rows at once. A tile is float [columns][width]; width is the number of rows rounded up to 16, or
// 1 for a single row (which is then just that row in float32).
#pragma once

#include <cstdint>

#include "../common/view.h"
#include "activate_rows.h"

namespace bigmodel {

constexpr int64_t kTileRows = 64;
constexpr int64_t kTileLanes = 16;

inline int64_t tile_width(int64_t rows) { return (rows + kTileLanes - 1) / kTileLanes * kTileLanes; }

struct TileKernels {
  // x [rows][columns] of dtype (float32, bfloat16, float16), `stride` elements between rows -> tile [columns][width].
  // Lanes from `rows` on become 0. float32 bits are moved unchanged, whatever they mean.
  void (*pack)(const void* x, DType dtype, int64_t stride, int64_t rows, int64_t columns, int64_t width, float* tile);

  // out[row][column] = tile[column][row] + bias[column], rounded once to dtype; bias may be null.
  void (*unpack)(const float* tile, int64_t rows, int64_t columns, int64_t width, const float* bias, void* out,
                 DType dtype, int64_t stride);
};

extern const TileKernels tile_kernels_scalar, tile_kernels_avx2, tile_kernels_avx512;

const TileKernels& tile_kernels();  // the active instruction set's

// Unpacks act(tile + bias); activate may be null. The tile is overwritten, and has room for a multiple of 16 floats.
void unpack_activated(ActivateRows activate, float* tile, int64_t rows, int64_t columns, int64_t width,
                      const float* bias, void* out, DType dtype, int64_t stride);

}  // namespace bigmodel
