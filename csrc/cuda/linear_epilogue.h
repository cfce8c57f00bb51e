// What follows a linear layer's sums: y[m,n] = act(sum * scale[m] * weight_scale[n] + bias[n]), every operation rounded
// by itself, then one rounding to y's dtype. What is null is left out.
#pragma once

#include "elements.h"
#include "sparse_args.h"

namespace bigmodel {
namespace {

__device__ __forceinline__ float activate_by_name(Activation a, float v) {
  switch (a) {
    case Activation::none:
      return v;
    case Activation::relu:
      return activate<Activation::relu>(v);
    case Activation::leaky_relu:
      return activate<Activation::leaky_relu>(v);
    case Activation::gelu:
      return activate<Activation::gelu>(v);
    case Activation::silu:
      return activate<Activation::silu>(v);
    case Activation::sigmoid:
      return activate<Activation::sigmoid>(v);
    case Activation::tanh:
      return activate<Activation::tanh>(v);
    case Activation::softplus:
      return activate<Activation::softplus>(v);
  }
  return v;
}

template <typename Sum>
__device__ __forceinline__ void finish(const LinearEpilogue& e, int64_t m, int64_t n, Sum sum) {
  float v = static_cast<float>(sum);
  if (e.scale) v = __fmul_rn(__fmul_rn(v, __ldg(e.scale + m)), __ldg(e.weight_scale + n));
  if (e.bias) v = __fadd_rn(v, element_at(e.bias, e.bias_dtype, n));
  store_element(e.out, e.dtype, m * e.n + n, activate_by_name(e.activation, v));
}

}  // namespace
}  // namespace bigmodel
