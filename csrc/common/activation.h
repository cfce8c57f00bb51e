// Activations and their slopes on one float, for host and device: what the scalar kernel and the CUDA kernel compute.
// Everything is static (see half.h). NaN gives NaN (ReLU's slope at NaN is 1, as in torch).
#pragma once

#include <cmath>

#include "philox.h"

namespace bigmodel {

enum class Activation : int { none, relu, leaky_relu, gelu, silu, sigmoid, tanh, softplus };
constexpr int kActivationCount = 8;

constexpr float kLeakySlope = 0.01f;
constexpr float kSqrtHalf = 0.707106781186547524f;
constexpr float kInvSqrt2Pi = 0.398942280401432678f;

// exp is only ever asked for arguments <= 0: nothing overflows on the way to a finite result.
static BIGMODEL_HOST_DEVICE float logistic(float x) {
  const float e = expf(-fabsf(x)), d = 1.0f / (1.0f + e);
  return x < 0.0f ? e * d : d;
}

template <Activation A>
static BIGMODEL_HOST_DEVICE float activate(float x) {
  switch (A) {
    case Activation::none: return x;
    case Activation::relu: return x <= 0.0f ? 0.0f : x;
    case Activation::leaky_relu: return x > 0.0f ? x : x * kLeakySlope;
    case Activation::gelu: return x * (0.5f * erfcf(-x * kSqrtHalf));
    case Activation::silu: return x * logistic(x);
    case Activation::sigmoid: return logistic(x);
    case Activation::tanh: return tanhf(x);
    case Activation::softplus: return (x <= 0.0f ? 0.0f : x) + log1pf(expf(-fabsf(x)));
  }
  return x;
}

template <Activation A>
static BIGMODEL_HOST_DEVICE float slope(float x) {
  switch (A) {
    case Activation::none: return 1.0f;
    case Activation::relu: return x <= 0.0f ? 0.0f : 1.0f;
    case Activation::leaky_relu: return x > 0.0f ? 1.0f : kLeakySlope;
    case Activation::gelu: return 0.5f * erfcf(-x * kSqrtHalf) + x * (kInvSqrt2Pi * expf(-0.5f * x * x));
    case Activation::silu: {
      const float e = expf(-fabsf(x)), d = 1.0f / (1.0f + e);
      const float s = x < 0.0f ? e * d : d, rest = x < 0.0f ? d : e * d;  // s and 1 - s
      return s * (1.0f + x * rest);
    }
    case Activation::sigmoid: {
      const float e = expf(-fabsf(x)), d = 1.0f / (1.0f + e);
      return e * d * d;
    }
    case Activation::tanh: {
      const float e = expf(-2.0f * fabsf(x)), d = 1.0f / (1.0f + e);
      return 4.0f * e * d * d;
    }
    case Activation::softplus: return logistic(x);
  }
  return 1.0f;
}

}  // namespace bigmodel
