// Activations and their slopes on kWide vectors at a time, over whichever vector type simd_<isa>.h has defined before
// this file is included; everything is in an anonymous namespace. activation.h has the scalar twins. Polynomials: our
// own weighted minimax fits, the relative error of each in its comment.
#pragma once

#include "../common/activation.h"
#include "wide_vector.h"

namespace bigmodel {
namespace {

template <int N>
BIGMODEL_INLINE Wide polynomial(const Wide& x, const float (&c)[N]) {
  Wide y = wide(c[N - 1]);
#pragma GCC unroll 16
  for (int i = N - 2; i >= 0; --i) y = fma(y, x, wide(c[i]));
  return y;
}

// exp(x) for x <= 0: 2^n exp(r) with |r| <= ln 2 / 2. Below -104 the result is 0 in float32.
BIGMODEL_INLINE Wide exp_of(const Wide& argument) {
  static constexpr float c[] = {0.4999999403953552f, 0.1666652113199234f, 0.04166838899254799f, 0.00836874544620514f,
                                0.0013814540579915047f};  // (exp(r) - 1 - r) / r^2, 3e-9
  const Wide x = at_least(-104.0f, argument);
  const Wide n = rounded(x * wide(1.44269504088896341f));
  Wide r = fnma(n, wide(0.693145751953125f), x);  // ln 2 in two parts; n times the first is exact
  r = fnma(n, wide(1.42860682030941723e-6f), r);
  return times_power_of_2(fma(polynomial(r, c) * r, r, r) + wide(1.0f), n);
}

// e = exp(-|x|), d = 1 / (1 + e): the logistic function is d for x >= 0 and e d below, without cancellation.
struct Logistic {
  Wide e, d;
  BIGMODEL_INLINE explicit Logistic(const Wide& x)
      : e(exp_of(wide(0.0f) - magnitude(x))), d(wide(1.0f) / (wide(1.0f) + e)) {}
  BIGMODEL_INLINE Wide value(const Wide& x) const { return choose(below(x, wide(0.0f)), e * d, d); }
  BIGMODEL_INLINE Wide complement(const Wide& x) const { return choose(below(x, wide(0.0f)), d, e * d); }
};

constexpr float kHalfLog2E = 0.72134751081466675f;  // rounded: 9.6e-9 too small

// The lower tail of the normal distribution divided by its density's factor 2^(-kHalfLog2E a^2), for 0 <= a < 15.
#if defined(__AVX512F__)
// Quintics on the quarter octaves of 1 + a, 1.2e-7: a look-up costs half of a division, and leaves the multipliers
// free.
BIGMODEL_INLINE Wide tail_ratio(const Wide& a) {
  alignas(64) static constexpr float centre[16] = {1.25f, 1.75f, 2.25f, 2.75f, 3.5f,   4.5f,   5.5f,   6.5f,
                                                   8.0f,  10.0f, 12.0f, 14.0f, 0.125f, 0.375f, 0.625f, 0.875f};
  alignas(64) static constexpr float c[6][16] = {
      {0.23076032f, 0.18523166f, 0.15365194f, 0.13072473f, 0.106345154f, 0.08480338f, 0.07034268f, 0.06001566f,
       0.04912253f, 0.03950667f, 0.03301894f, 0.028352624f, 0.45379323f, 0.37960443f, 0.32335618f, 0.27977058f},
      {-0.11049188f, -0.07478687f, -0.053225424f, -0.039449263f, -0.026734248f, -0.017327018f, -0.012057466f,
       -0.008840393f, -0.005961914f, -0.0038753422f, -0.0027146302f, -0.0020050358f, -0.34221813f, -0.25659063f,
       -0.19684468f, -0.15414304f},
      {0.046321567f, 0.02717745f, 0.016946483f, 0.011119491f, 0.006387046f, 0.0034158172f, 0.0020132097f, 0.0012765113f,
       0.0007135385f, 0.0003766187f, 0.0002217174f, 0.00014109474f, 0.20550424f, 0.14169028f, 0.100156985f,
       0.07244041f},
      {-0.017529365f, -0.009075498f, -0.005031085f, -0.0029568048f, -0.0014590123f, -0.0006517984f, -0.0003280432f,
       -0.00018089561f, -8.427865e-05f, -3.6276822e-05f, -1.7992643e-05f, -9.88128e-06f, -0.10550776f, -0.06781518f,
       -0.044743735f, -0.030247651f},
      {0.0061575137f, 0.002836175f, 0.0014268446f, 0.00075199833f, 0.0003259708f, 0.000121997036f, 5.3010674e-05f,
       2.5523052e-05f, 1.0047298e-05f, 3.5264175e-06f, 1.4633072e-06f, 6.964727e-07f, 0.048437625f, 0.029205587f,
       0.018541543f, 0.0119818635f},
      {-0.0019930825f, -0.0008299372f, -0.0003782308f, -0.00018052677f, -6.897814e-05f, -2.1934025e-05f, -8.265057e-06f,
       -3.481898e-06f, -1.1571427e-06f, -3.3351986e-07f, -1.1735015e-07f, -4.841402e-08f, -0.02008483f, -0.011587137f,
       -0.0069503016f, -0.0042477935f}};
  Wide r;
#pragma GCC unroll 4
  for (int j = 0; j < kWide; ++j) {  // the exponent's lower two bits and the significand's upper two
    const __m512i index = _mm512_srli_epi32(_mm512_castps_si512(a.v[j] + set(1.0f)), 21);
    const Floats x = a.v[j] - look_up(centre, index);
    r.v[j] = look_up(c[5], index);
#pragma GCC unroll 5
    for (int i = 4; i >= 0; --i) r.v[j] = fma(r.v[j], x, look_up(c[i], index));
  }
  return r;
}
constexpr float kHalfLog2ERest = 0.0f;  // is in the table
#else
BIGMODEL_INLINE Wide tail_ratio(const Wide& a) {
  static constexpr float c[] = BIGMODEL_NORMAL_TAIL;
  return polynomial(wide(1.0f) / fma(a, wide(0.25f), wide(1.0f)), c);
}
constexpr float kHalfLog2ERest = 9.62981494545545e-09f;
#endif

// normal_point of activation.h: density = exp(-x^2 / 2) with x^2 taken in two parts, and the share below x.
struct Normal {
  Wide density, cumulative;
  BIGMODEL_INLINE explicit Normal(const Wide& x) {
    static constexpr float c[] = {1.0f,
                                  0.6931470036506653f,
                                  0.24022246897220612f,
                                  0.0555071122944355f,
                                  0.009671294130384922f,
                                  0.0013269407209008932f};  // 2^r for |r| <= 1/2, 9e-8
    const Wide a = at_most(14.9f, magnitude(x));            // beyond it the density is 0 in float32
    const Wide square = a * a, low = fms(a, a, square);
    const Wide n = rounded(square * wide(-kHalfLog2E));
    Wide r = fnma(low, wide(kHalfLog2E), fms(square, wide(-kHalfLog2E), n));
    if (kHalfLog2ERest != 0.0f) r = fnma(square, wide(kHalfLog2ERest), r);
    density = times_power_of_2(polynomial(r, c), n);
    const Wide tail = density * tail_ratio(a);
    cumulative = choose(below(x, wide(0.0f)), tail, wide(1.0f) - tail);
  }
};

BIGMODEL_INLINE Wide tanh_of(const Wide& x) {
  static constexpr float c[] = {-0.3333328068256378f, 0.13331441581249237f, -0.05373971536755562f, 0.02063908614218235f,
                                -0.005704985000193119f};  // (tanh(x) - x) / x^3, 4e-9
  const Wide a = magnitude(x), square = x * x;
  const Wide small = fma(polynomial(square, c) * square, x, x);
  const Wide e = exp_of(a * wide(-2.0f));
  const Wide large = (wide(1.0f) - e) / (wide(1.0f) + e);
  return choose(below(a, wide(0.625f)), small, each([&](int j) { return with_sign_of(large.v[j], x.v[j]); }));
}

// log(1 + u) for u in [0, 1].
BIGMODEL_INLINE Wide log1p_of(const Wide& u) {
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
BIGMODEL_INLINE Wide activate_wide(const Wide& x) {
  switch (A) {
    case Activation::none:
      return x;
    case Activation::relu:
      return at_least(0.0f, x);
    case Activation::leaky_relu:
      return choose(below(wide(0.0f), x), x, x * wide(kLeakySlope));
    case Activation::gelu:
      return x * Normal(x).cumulative;
    case Activation::silu:
      return x * Logistic(x).value(x);
    case Activation::sigmoid:
      return Logistic(x).value(x);
    case Activation::tanh:
      return tanh_of(x);
    case Activation::softplus:
      return at_least(0.0f, x) + log1p_of(exp_of(wide(0.0f) - magnitude(x)));
  }
  return x;
}

template <Activation A>
BIGMODEL_INLINE Wide slope_wide(const Wide& x) {
  switch (A) {
    case Activation::none:
      return wide(1.0f);
    case Activation::relu:
      return each([&](int j) { return choose(not_above(x.v[j], set(0.0f)), set(0.0f), set(1.0f)); });
    case Activation::leaky_relu:
      return choose(below(wide(0.0f), x), wide(1.0f), wide(kLeakySlope));
    case Activation::gelu: {
      const Normal normal(x);
      return fma(x, normal.density * wide(kInvSqrt2Pi), normal.cumulative);
    }
    case Activation::silu: {
      const Logistic logistic(x);
      return logistic.value(x) * fma(x, logistic.complement(x), wide(1.0f));
    }
    case Activation::sigmoid: {
      const Logistic logistic(x);
      return logistic.e * logistic.d * logistic.d;
    }
    case Activation::tanh: {
      const Logistic logistic(x * wide(2.0f));  // 4 e^-2|x| / (1 + e^-2|x|)^2
      return wide(4.0f) * logistic.e * logistic.d * logistic.d;
    }
    case Activation::softplus:
      return Logistic(x).value(x);
  }
  return x;
}

}  // namespace
}  // namespace bigmodel
