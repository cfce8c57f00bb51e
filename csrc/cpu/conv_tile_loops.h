// The loops of conv_tile.h, of which a compiler makes good code for any instruction set. Everything is in an anonymous
// namespace: each file that includes this has its own copy.
#pragma once

#include <cstring>

#include "../common/half.h"
#include "conv_tile.h"

namespace bigmodel {
namespace {

inline void gather(const ConvTile& t) {
  for (int64_t k = 0; k < t.columns; ++k) {
    for (int64_t r = 0; r < t.run_count; ++r) {
      const float* from = t.planes + t.offset[k] + t.runs[r].from;
      float* to = t.tile + k * t.width + t.runs[r].to;
      if (t.step == 1) {
        std::memcpy(to, from, static_cast<size_t>(t.runs[r].count) * 4);
      } else {
        for (int64_t i = 0; i < t.runs[r].count; ++i) to[i] = from[i * t.step];
      }
    }
  }
}

inline void store(const float* sums, int64_t rows, int64_t width, int64_t pixels, const float* bias, void* out,
                  DType dtype, int64_t plane) {
  for (int64_t n = 0; n < rows; ++n, sums += width) {
    const float b = bias ? bias[n] : -0.0f;  // -0 changes nothing
    if (dtype == DType::f32) {
      float* to = static_cast<float*>(out) + n * plane;
      for (int64_t p = 0; p < pixels; ++p) to[p] = sums[p] + b;
    } else {
      uint16_t* to = static_cast<uint16_t*>(out) + n * plane;
      for (int64_t p = 0; p < pixels; ++p)
        to[p] = dtype == DType::bf16 ? float_to_bf16(sums[p] + b) : float_to_f16(sums[p] + b);
    }
  }
}

}  // namespace
}  // namespace bigmodel
