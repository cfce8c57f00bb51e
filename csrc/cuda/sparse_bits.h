// Where the stored entries of an unstructured sparse W [N,K] are, as the CUDA kernels want it: derived from panel-CSR
// (formats/csr.py) once per pattern; the values stay where they are and as they are. "Units" are 128 columns of a row.
//
//   masks  uint32 [N][units][4]   bit j of word w of unit u: is column 128 u + 32 w + j stored?
//   units  uint2  [N][units]      x: the index of the unit's first value; y, from the low byte: how many of the unit's
//                                 values come before its words 1, 2 and 3, and how many it has
//
// A unit's values are next to each other, in order of their columns, because panels are multiples of 128 columns. So
// the value of a stored column is found by one population count. 1.5 bits for each weight, stored or not.
//
//   runs   int2   [N][panels]     x: the index of the first value of the row in the panel; y: how many it has there
//
// This, with panel-CSR's own column bytes, is for a few rows of activations times a matrix of which little is stored.
#pragma once

#include "device.h"
#include "sparse_args.h"

namespace bigmodel {
namespace {

// Values of a unit before its word w.
__device__ __forceinline__ uint32_t before_word(uint32_t counts, int w) { return (counts << 8) >> (8 * w) & 255; }

// 0 to 31: the bits below.
__device__ __forceinline__ uint32_t below(int bit) { return (1u << bit) - 1; }

// A word of a row's mask, and where the values of its columns begin.
struct MaskWord {
  uint32_t first, mask;
};

// Nothing is stored in rows and units that do not exist.
__device__ __forceinline__ MaskWord load_word(const BitsArgs& a, int64_t row, int unit, int word) {
  if (row >= a.n || unit >= a.row_units) return {0, 0};
  const int64_t index = row * a.row_units + unit;
  const uint2 held = __ldg(a.units + index);
  return {held.x + a.skip + before_word(held.y, word),
          __ldg(reinterpret_cast<const uint32_t*>(a.masks + index) + word)};
}

}  // namespace
}  // namespace bigmodel
