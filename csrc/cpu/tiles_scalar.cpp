#include <cstring>

#include "../common/half.h"
#include "tiles.h"

namespace bigmodel {
namespace {

void pack(const void* x, DType dtype, int64_t stride, int64_t rows, int64_t columns, int64_t width, float* tile) {
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = r * stride + c;
      float* to = tile + c * width + r;
      if (dtype == DType::f32) {
        std::memcpy(to, static_cast<const float*>(x) + i, 4);
      } else {
        const uint16_t h = static_cast<const uint16_t*>(x)[i];
        *to = dtype == DType::bf16 ? bf16_to_float(h) : f16_to_float(h);
      }
    }
    for (int64_t r = rows; r < width; ++r) tile[c * width + r] = 0.0f;
  }
}

void unpack(const float* tile, int64_t rows, int64_t columns, int64_t width, const float* bias, void* out, DType dtype,
            int64_t stride) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      const float y = bias ? tile[c * width + r] + bias[c] : tile[c * width + r];
      if (dtype == DType::f32)
        static_cast<float*>(out)[r * stride + c] = y;
      else
        static_cast<uint16_t*>(out)[r * stride + c] = dtype == DType::bf16 ? float_to_bf16(y) : float_to_f16(y);
    }
  }
}

}  // namespace

const TileKernels tile_kernels_scalar = {pack, unpack};

}  // namespace bigmodel
