// activate_rows over whichever vector type simd_<isa>.h has defined before this file is included; everything is in an
// anonymous namespace.
#pragma once

#include "activate_rows.h"
#include "activation_vector.h"

namespace bigmodel {
namespace {

// Narrow rows: kWide vectors of several rows side by side, since one vector alone takes as long as kWide.
template <Activation A>
void narrow_rows(float* y, int64_t rows, int64_t columns, int64_t stride, const float* bias) {
  int64_t row = 0, column = 0;
  while (row < rows) {
    float* at[kWide];
    Wide z = wide(0.0f);
#pragma GCC unroll 4
    for (int j = 0; j < kWide; ++j) {
      at[j] = row < rows ? y + row * stride + column : nullptr;
      if (!at[j]) continue;
      z.v[j] = load<DType::f32>(at[j], 0) + set(bias ? bias[row] : -0.0f);  // v + -0 is v for every v
      column += kLanes;
      if (column < columns) continue;
      column = 0;
      ++row;
    }
    z = activate_wide<A>(z);
#pragma GCC unroll 4
    for (int j = 0; j < kWide; ++j)
      if (at[j]) store<DType::f32>(at[j], 0, z.v[j]);
  }
}

template <Activation A>
void rows_of(float* y, int64_t rows, int64_t columns, int64_t stride, const float* bias) {
  if (columns % kWideLanes != 0) return narrow_rows<A>(y, rows, columns, stride, bias);
  for (int64_t r = 0; r < rows; ++r, y += stride) {
    const Floats b = set(bias ? bias[r] : -0.0f);
    for (int64_t c = 0; c < columns; c += kWideLanes) {
      const Wide z = load_wide<DType::f32>(y, c);
      store_wide<DType::f32>(y + c, activate_wide<A>(each([&](int j) { return z.v[j] + b; })).v, false);
    }
  }
}

constexpr ActivateKernels activate_kernels = {{nullptr, rows_of<Activation::relu>, rows_of<Activation::leaky_relu>,
                                               rows_of<Activation::gelu>, rows_of<Activation::silu>,
                                               rows_of<Activation::sigmoid>, rows_of<Activation::tanh>,
                                               rows_of<Activation::softplus>}};

}  // namespace
}  // namespace bigmodel
