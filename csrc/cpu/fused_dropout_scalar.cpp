#include "../common/half.h"
#include "fused_dropout.h"

namespace bigmodel {
namespace {

float load(const void* p, DType dtype, int64_t i) {
  if (dtype == DType::f32) return static_cast<const float*>(p)[i];
  const uint16_t h = static_cast<const uint16_t*>(p)[i];
  return dtype == DType::bf16 ? bf16_to_float(h) : f16_to_float(h);
}

void store(void* p, DType dtype, int64_t i, float value) {
  if (dtype == DType::f32)
    static_cast<float*>(p)[i] = value;
  else
    static_cast<uint16_t*>(p)[i] = dtype == DType::bf16 ? float_to_bf16(value) : float_to_f16(value);
}

template <Activation A, bool kBackward>
void kernel(const DropoutArgs& a, int64_t begin, int64_t end) {
  int64_t column = begin % a.features;
  PhiloxBlock block{};
  for (int64_t i = begin; i < end; ++i) {
    if (a.seed && (i == begin || i % kPhiloxHalves == 0))
      block = philox_block(*a.seed, a.first_block + static_cast<uint64_t>(i / kPhiloxHalves));
    const bool keep = !a.seed || philox_half(block, static_cast<int>(i % kPhiloxHalves)) >= a.threshold;
    float z = load(a.x, a.dtype, i);
    if (a.bias) z += load(a.bias, a.bias_dtype, column);
    const float other = a.other ? load(a.other, a.dtype, i) : 0.0f;
    float y;
    if (kBackward) {
      y = keep ? other * slope<A>(z) * a.scale : 0.0f;
    } else {
      y = activate<A>(z) * a.scale;
      y = keep ? (a.other ? y + other : y) : other;
    }
    store(a.out, a.dtype, i, y);
    if (++column == a.features) column = 0;
  }
}

template <bool kBackward>
void dispatch(const DropoutArgs& a, int64_t begin, int64_t end) {
  switch (a.activation) {
    case Activation::none:
      return kernel<Activation::none, kBackward>(a, begin, end);
    case Activation::relu:
      return kernel<Activation::relu, kBackward>(a, begin, end);
    case Activation::leaky_relu:
      return kernel<Activation::leaky_relu, kBackward>(a, begin, end);
    case Activation::gelu:
      return kernel<Activation::gelu, kBackward>(a, begin, end);
    case Activation::silu:
      return kernel<Activation::silu, kBackward>(a, begin, end);
    case Activation::sigmoid:
      return kernel<Activation::sigmoid, kBackward>(a, begin, end);
    case Activation::tanh:
      return kernel<Activation::tanh, kBackward>(a, begin, end);
    case Activation::softplus:
      return kernel<Activation::softplus, kBackward>(a, begin, end);
  }
}

}  // namespace

void fused_dropout_scalar(const DropoutArgs& args, int64_t begin, int64_t end, bool) {
  dispatch<false>(args, begin, end);
}

void fused_dropout_backward_scalar(const DropoutArgs& args, int64_t begin, int64_t end, bool) {
  dispatch<true>(args, begin, end);
}

}  // namespace bigmodel
