// The fused dropout kernel over whichever vector type simd_<isa>.h has defined before this file is included; everything
// is in an anonymous namespace. Polynomials: our own weighted minimax fits, the relative
// error of each in its comment.
#pragma once

#include <cstring>

#include "../common/half.h"
#include "fused_dropout.h"

namespace bigmodel {
namespace {

template <int N>
inline Floats polynomial(Floats x, const float (&c)[N]) {
  Floats y = set(c[N - 1]);
#pragma GCC unroll 16
  for (int i = N - 2; i >= 0; --i) y = fma(y, x, set(c[i]));
  return y;
}

// exp(x + low) for x <= 0 and a tiny `low`: 2^n exp(r) with |r| <= ln 2 / 2. Below -104 the result is 0 in float32.
inline Floats exp_of(Floats x, Floats low) {
  static constexpr float c[] = {0.4999999403953552f, 0.1666652113199234f, 0.04166838899254799f, 0.00836874544620514f,
                                0.0013814540579915047f};  // (exp(r) - 1 - r) / r^2, 3e-9
  x = at_least(-104.0f, x);
  const Floats n = rounded(x * set(1.44269504088896341f));
  Floats r = fnma(n, set(0.693145751953125f), x);  // ln 2 in two parts; n times the first is exact
  r = fnma(n, set(1.42860682030941723e-6f), r) + low;
  const Floats p = fma(polynomial(r, c) * r, r, r) + set(1.0f);
  return times_power_of_2(p, n);
}

inline Floats exp_of(Floats x) { return exp_of(x, set(0.0f)); }

// e = exp(-|x|), d = 1 / (1 + e): the logistic function is d for x >= 0 and e d below, without cancellation.
struct Logistic {
  Floats e, d;
  explicit Logistic(Floats x) : e(exp_of(-magnitude(x))), d(set(1.0f) / (set(1.0f) + e)) {}
  Floats value(Floats x) const { return choose(below(x, set(0.0f)), e * d, d); }
  Floats complement(Floats x) const { return choose(below(x, set(0.0f)), d, e * d); }
};

// normal_point of activation.h: density = exp(-x^2 / 2) with x^2 taken in two parts, and the share below x.
struct Normal {
  Floats density, cumulative;
  explicit Normal(Floats x) {
    static constexpr float c[] = BIGMODEL_NORMAL_TAIL;
    const Floats a = at_most(15.0f, magnitude(x));  // beyond it the density is 0 in float32
    const Floats square = a * a, low = fms(a, a, square);
    density = exp_of(square * set(-0.5f), low * set(-0.5f));
    const Floats t = set(1.0f) / fma(a, set(0.25f), set(1.0f));
    const Floats tail = density * polynomial(t, c);
    cumulative = choose(below(x, set(0.0f)), tail, set(1.0f) - tail);
  }
};

inline Floats tanh_of(Floats x) {
  static constexpr float c[] = {-0.3333328068256378f, 0.13331441581249237f, -0.05373971536755562f, 0.02063908614218235f,
                                -0.005704985000193119f};  // (tanh(x) - x) / x^3, 4e-9
  const Floats a = magnitude(x), square = x * x;
  const Floats small = fma(polynomial(square, c) * square, x, x);
  const Floats e = exp_of(a * set(-2.0f));
  const Floats large = (set(1.0f) - e) / (set(1.0f) + e);
  return choose(below(a, set(0.625f)), small, with_sign_of(large, x));
}

// log(1 + u) for u in [0, 1].
inline Floats log1p_of(Floats u) {
  static constexpr float c[] = {1.0f,
                                -0.4999998211860657f,
                                0.33332559466362f,
                                -0.24987269937992096f,
                                0.19890743494033813f,
                                -0.1610567718744278f,
                                0.12418407946825027f,
                                -0.08244138211011887f,
                                0.041477929800748825f,
                                -0.013407396152615547f,
                                0.0020302156917750835f};  // log1p(u) / u, 7e-10
  return u * polynomial(u, c);
}

template <Activation A>
inline Floats activate_vector(Floats x) {
  switch (A) {
    case Activation::none:
      return x;
    case Activation::relu:
      return at_least(0.0f, x);
    case Activation::leaky_relu:
      return choose(below(set(0.0f), x), x, x * set(kLeakySlope));
    case Activation::gelu:
      return x * Normal(x).cumulative;
    case Activation::silu:
      return x * Logistic(x).value(x);
    case Activation::sigmoid:
      return Logistic(x).value(x);
    case Activation::tanh:
      return tanh_of(x);
    case Activation::softplus:
      return at_least(0.0f, x) + log1p_of(exp_of(-magnitude(x)));
  }
  return x;
}

template <Activation A>
inline Floats slope_vector(Floats x) {
  switch (A) {
    case Activation::none:
      return set(1.0f);
    case Activation::relu:
      return choose(not_above(x, set(0.0f)), set(0.0f), set(1.0f));
    case Activation::leaky_relu:
      return choose(below(set(0.0f), x), set(1.0f), set(kLeakySlope));
    case Activation::gelu: {
      const Normal normal(x);
      return normal.cumulative + x * (normal.density * set(kInvSqrt2Pi));
    }
    case Activation::silu: {
      const Logistic logistic(x);
      return logistic.value(x) * (set(1.0f) + x * logistic.complement(x));
    }
    case Activation::sigmoid: {
      const Logistic logistic(x);
      return logistic.e * logistic.d * logistic.d;
    }
    case Activation::tanh: {
      const Logistic logistic(x * set(2.0f));  // 4 e^-2|x| / (1 + e^-2|x|)^2
      return set(4.0f) * logistic.e * logistic.d * logistic.d;
    }
    case Activation::softplus:
      return Logistic(x).value(x);
  }
  return x;
}

struct Chunk {
  const void* x;
  const float* bias;  // may be null
  const void* other;  // may be null
  void* out;
};

template <DType D, Activation A, bool kBackward>
inline void run_chunk(const Chunk& chunk, const Keep& keep, Floats scale, bool stream) {
#pragma GCC unroll 8
  for (int v = 0; v < kDropoutChunk / kLanes; ++v) {
    const int64_t i = v * kLanes;
    Floats z = load<D>(chunk.x, i);
    if (chunk.bias) z = z + load<DType::f32>(chunk.bias, i);
    const Floats other = chunk.other ? load<D>(chunk.other, i) : set(0.0f);
    Floats y;
    if (kBackward) {
      y = choose(keep.vector(v), other * slope_vector<A>(z) * scale, set(0.0f));
    } else {
      y = activate_vector<A>(z) * scale;
      if (chunk.other) y = y + other;
      y = choose(keep.vector(v), y, other);
    }
    store<D>(chunk.out, i, y, stream);
  }
}

// 64 bias values from `column` on, starting again at the end of the row.
template <DType D>
const float* bias_chunk(const DropoutArgs& a, int64_t column, float* space) {
  const bool wraps = column + kDropoutChunk > a.features;
  if (a.bias_dtype == DType::f32) {
    const float* bias = static_cast<const float*>(a.bias);
    if (!wraps) return bias + column;
    for (int64_t j = 0; j < kDropoutChunk; ++j) {
      space[j] = bias[column];
      if (++column == a.features) column = 0;
    }
    return space;
  }
  const uint16_t* bias = static_cast<const uint16_t*>(a.bias);
  if (!wraps) {
    for (int64_t j = 0; j < kDropoutChunk; j += kLanes) store<DType::f32>(space, j, load<D>(bias + column, j), false);
    return space;
  }
  for (int64_t j = 0; j < kDropoutChunk; ++j) {
    space[j] = D == DType::bf16 ? bf16_to_float(bias[column]) : f16_to_float(bias[column]);
    if (++column == a.features) column = 0;
  }
  return space;
}

template <DType D, Activation A, bool kBackward>
void dropout_kernel(const DropoutArgs& a, int64_t begin, int64_t end, bool stream) {
  constexpr int64_t kBytes = D == DType::f32 ? 4 : 2;
  const DropoutMask mask(a.seed ? *a.seed : 0, a.threshold);
  const Floats scale = set(a.scale);
  alignas(64) float bias_space[kDropoutChunk];
  int64_t column = begin % a.features;
  for (int64_t i = begin; i < end; i += kDropoutChunk) {
    const Keep keep = a.seed ? mask.at(a.first_block + static_cast<uint64_t>(i / kPhiloxHalves)) : keep_all();
    Chunk chunk{static_cast<const char*>(a.x) + i * kBytes, nullptr, nullptr, static_cast<char*>(a.out) + i * kBytes};
    if (a.other) chunk.other = static_cast<const char*>(a.other) + i * kBytes;
    if (a.bias) {
      chunk.bias = bias_chunk<D>(a, column, bias_space);
      column += kDropoutChunk;
      while (column >= a.features) column -= a.features;
    }
    if (end - i >= kDropoutChunk) {
      run_chunk<D, A, kBackward>(chunk, keep, scale, stream);
    } else {  // the last few elements pass through a full chunk's space
      alignas(64) char x[kDropoutChunk * kBytes] = {}, other[kDropoutChunk * kBytes] = {}, out[kDropoutChunk * kBytes];
      const size_t bytes = static_cast<size_t>((end - i) * kBytes);
      std::memcpy(x, chunk.x, bytes);
      if (chunk.other) std::memcpy(other, chunk.other, bytes);
      run_chunk<D, A, kBackward>({x, chunk.bias, chunk.other ? other : nullptr, out}, keep, scale, false);
      std::memcpy(chunk.out, out, bytes);
    }
  }
  if (stream) _mm_sfence();
}

template <DType D, bool kBackward>
void dropout_activation(const DropoutArgs& a, int64_t begin, int64_t end, bool stream) {
  switch (a.activation) {
    case Activation::none:
      return dropout_kernel<D, Activation::none, kBackward>(a, begin, end, stream);
    case Activation::relu:
      return dropout_kernel<D, Activation::relu, kBackward>(a, begin, end, stream);
    case Activation::leaky_relu:
      return dropout_kernel<D, Activation::leaky_relu, kBackward>(a, begin, end, stream);
    case Activation::gelu:
      return dropout_kernel<D, Activation::gelu, kBackward>(a, begin, end, stream);
    case Activation::silu:
      return dropout_kernel<D, Activation::silu, kBackward>(a, begin, end, stream);
    case Activation::sigmoid:
      return dropout_kernel<D, Activation::sigmoid, kBackward>(a, begin, end, stream);
    case Activation::tanh:
      return dropout_kernel<D, Activation::tanh, kBackward>(a, begin, end, stream);
    case Activation::softplus:
      return dropout_kernel<D, Activation::softplus, kBackward>(a, begin, end, stream);
  }
}

template <bool kBackward>
void dropout_dtype(const DropoutArgs& a, int64_t begin, int64_t end, bool stream) {
  if (a.dtype == DType::f32) return dropout_activation<DType::f32, kBackward>(a, begin, end, stream);
  if (a.dtype == DType::bf16) return dropout_activation<DType::bf16, kBackward>(a, begin, end, stream);
  dropout_activation<DType::f16, kBackward>(a, begin, end, stream);
}

}  // namespace
}  // namespace bigmodel
