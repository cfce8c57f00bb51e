#include <cstring>

#include "../common/half.h"
#include "int8_panel.h"

namespace bigmodel {
namespace {

void multiply(const uint8_t* a, const int8_t* b, int64_t groups, uint32_t* acc) {
  for (int64_t g = 0; g < groups; ++g, a += 4, b += 4 * kPanelColumns) {
    const int a0 = a[0], a1 = a[1], a2 = a[2], a3 = a[3];
    for (int64_t n = 0; n < kPanelColumns; ++n)
      acc[n] += static_cast<uint32_t>(a0 * b[4 * n] + a1 * b[4 * n + 1] + a2 * b[4 * n + 2] + a3 * b[4 * n + 3]);
  }
}

void store(const Int8Panel& p, int64_t row, const int32_t* acc) {
  const int64_t at = row * p.out_stride;
  if (p.out_dtype == DType::i32) {
    std::memcpy(static_cast<int32_t*>(p.out) + at, acc, static_cast<size_t>(p.columns) * 4);
    return;
  }
  float y[kPanelColumns];
  for (int64_t n = 0; n < kPanelColumns; ++n) {
    y[n] = static_cast<float>(acc[n]) * p.x_scale[row] * p.weight_scale[n];
    if (p.bias) y[n] += p.bias[n];
  }
  if (p.activate) p.activate(y, 1, kPanelColumns, kPanelColumns, nullptr);
  for (int64_t n = 0; n < p.columns; ++n) {
    if (p.out_dtype == DType::f32) {
      static_cast<float*>(p.out)[at + n] = y[n];
    } else {
      static_cast<uint16_t*>(p.out)[at + n] = p.out_dtype == DType::bf16 ? float_to_bf16(y[n]) : float_to_f16(y[n]);
    }
  }
}

}  // namespace

void int8_panel_scalar(const Int8Panel& p) {
  for (int64_t row = 0; row < p.rows; ++row) {
    uint32_t acc[kPanelColumns] = {};
    int32_t* partial = p.partial + row * kPanelColumns;
    if (!p.first) std::memcpy(acc, partial, sizeof acc);
    multiply(p.a + row * p.a_stride, p.b, p.groups, acc);
    if (p.compensation)
      for (int64_t n = 0; n < kPanelColumns; ++n) acc[n] -= static_cast<uint32_t>(p.compensation[n]);
    int32_t sums[kPanelColumns];
    std::memcpy(sums, acc, sizeof acc);
    if (p.last) {
      store(p, row, sums);
    } else {
      std::memcpy(partial, sums, sizeof sums);
    }
  }
}

}  // namespace bigmodel
