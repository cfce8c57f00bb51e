// What the sparse convolution does besides the product (sparse_linear.h), one thread's share of each: tiles of up to 64
// output pixels are taken straight out of planes of float32, and sums go back into planes.
#pragma once

#include <cstdint>

#include "../common/view.h"

namespace bigmodel {

// Output pixels of a tile that lie in one output line: lanes [to, to + count) read from `from` on.
struct ConvRun {
  int64_t from, to, count;
};

struct ConvTile {
  const float* planes;
  const int64_t* offset;  // [columns] of a column's first element: channel and place in the window
  int64_t columns;
  const ConvRun* runs;  // in ascending order of lanes
  int64_t run_count;
  int64_t step;   // elements between neighbouring output pixels of a line
  int64_t width;  // of the tile, as in tiles.h
  float* tile;    // [columns][width] and kConvTileSlack more; lanes of no pixel are undefined (but no more than before)
};

constexpr int64_t kConvTileSlack = 16;

struct ConvTileKernels {
  void (*gather)(const ConvTile&);
  // out[n * plane + p] = round(sums[n * width + p] + bias[n]) for p < pixels; bias may be null.
  void (*store)(const float* sums, int64_t rows, int64_t width, int64_t pixels, const float* bias, void* out,
                DType dtype, int64_t plane);
};

extern const ConvTileKernels conv_tile_scalar, conv_tile_avx2, conv_tile_avx512;

}  // namespace bigmodel
