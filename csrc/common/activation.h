// Activations and their slopes on one float, for host and device: what the scalar kernel and the CUDA kernel compute.
// Everything is static (see half.h). NaN gives NaN (ReLU's slope at NaN is 1, as in torch).
#pragma once

#include <cmath>

#include "philox.h"

namespace bigmodel {

enum class Activation : int { none, relu, leaky_relu, gelu, silu, sigmoid, tanh, softplus };
constexpr int kActivationCount = 8;

constexpr float kLeakySlope = 0.01f;
constexpr float kInvSqrt2Pi = 0.398942280401432678f;

// The lower tail of the normal distribution divided by exp(-a^2 / 2) is a polynomial in 1 / (1 + a / 4), relative error
// 9e-9 up to a = 6; the vector kernels evaluate the same one.
#define BIGMODEL_NORMAL_TAIL                                                                                         \
  {-2.3784143195371144e-05f, 0.10027579218149185f, 0.09439745545387268f,  0.12368862330913544f, -0.026913335546851158f, \
   0.31732815504074097f,     -0.34965771436691284f, 0.407657265663147f, -0.20176191627979279f, 0.035009466111660004f}

struct NormalPoint {
  float density, cumulative;  // exp(-x^2 / 2), and the share of the distribution below x
};

static BIGMODEL_HOST_DEVICE NormalPoint normal_point(float x) {
  constexpr float c[] = BIGMODEL_NORMAL_TAIL;
  const float a = fabsf(x) > 15.0f ? 15.0f : fabsf(x);  // beyond it the density is 0 in float32
  const float square = a * a, low = fmaf(a, a, -square);
  const float density = expf(-0.5f * square) * (1.0f - 0.5f * low);
  const float t = 1.0f / (1.0f + 0.25f * a);
  float y = c[9];
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int i = 8; i >= 0; --i) y = y * t + c[i];
  const float tail = density * y;
  return {density, x < 0.0f ? tail : 1.0f - tail};
}

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
    case Activation::gelu: return x * normal_point(x).cumulative;
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
    case Activation::gelu: {
      const NormalPoint point = normal_point(x);
      return point.cumulative + x * (kInvSqrt2Pi * point.density);
    }
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
