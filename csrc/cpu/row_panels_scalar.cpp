#include "../common/half.h"
#include "row_panels.h"

namespace bigmodel {
namespace {

float element(const void* x, DType dtype, int64_t i) {
  if (dtype == DType::f32) return static_cast<const float*>(x)[i];
  const uint16_t h = static_cast<const uint16_t*>(x)[i];
  return dtype == DType::bf16 ? bf16_to_float(h) : f16_to_float(h);
}

void pack(const void* x, DType dtype, int64_t stride, int64_t rows, int64_t columns, int64_t size, int64_t padded,
          float* panels) {
  for (int64_t first = 0; first < columns; first += size, panels += padded * size) {
    for (int64_t r = 0; r < padded; ++r) {
      for (int64_t c = 0; c < size; ++c) {
        const bool inside = r < rows && first + c < columns;
        panels[r * size + c] = inside ? element(x, dtype, r * stride + first + c) : 0.0f;
      }
    }
  }
}

void unpack(const float* y, int64_t rows, int64_t columns, int64_t size, const float* bias, void* out, DType dtype,
            int64_t stride) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      const float v = bias ? y[r * size + c] + bias[c] : y[r * size + c];
      if (dtype == DType::f32)
        static_cast<float*>(out)[r * stride + c] = v;
      else
        static_cast<uint16_t*>(out)[r * stride + c] = dtype == DType::bf16 ? float_to_bf16(v) : float_to_f16(v);
    }
  }
}

}  // namespace

const RowPanelKernels row_panel_kernels_scalar = {pack, unpack};

}  // namespace bigmodel
