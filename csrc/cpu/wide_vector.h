// kWide vectors at a time, of whichever vector type simd_<isa>.h has defined before this file is included; everything
// is in an anonymous namespace.
#pragma once

#include "../common/half.h"
#include "../common/view.h"

#define BIGMODEL_INLINE inline __attribute__((always_inline))

namespace bigmodel {
namespace {

// Independent vectors, every operation done on all of them before the next: their latencies overlap.
struct Wide {
  Floats v[kWide];
};
struct WideMask {
  Mask m[kWide];
};
constexpr int kWideLanes = kWide * kLanes;

template <typename F>
BIGMODEL_INLINE Wide each(F&& f) {
  Wide r;
#pragma GCC unroll 4
  for (int j = 0; j < kWide; ++j) r.v[j] = f(j);
  return r;
}

BIGMODEL_INLINE Wide wide(float c) {
  return each([&](int) { return set(c); });
}
BIGMODEL_INLINE Wide operator+(const Wide& a, const Wide& b) {
  return each([&](int j) { return a.v[j] + b.v[j]; });
}
BIGMODEL_INLINE Wide operator-(const Wide& a, const Wide& b) {
  return each([&](int j) { return a.v[j] - b.v[j]; });
}
BIGMODEL_INLINE Wide operator*(const Wide& a, const Wide& b) {
  return each([&](int j) { return a.v[j] * b.v[j]; });
}
BIGMODEL_INLINE Wide operator/(const Wide& a, const Wide& b) {
  return each([&](int j) { return a.v[j] / b.v[j]; });
}
BIGMODEL_INLINE Wide fma(const Wide& a, const Wide& b, const Wide& c) {
  return each([&](int j) { return fma(a.v[j], b.v[j], c.v[j]); });
}
BIGMODEL_INLINE Wide fnma(const Wide& a, const Wide& b, const Wide& c) {  // c - a b
  return each([&](int j) { return fnma(a.v[j], b.v[j], c.v[j]); });
}
BIGMODEL_INLINE Wide fms(const Wide& a, const Wide& b, const Wide& c) {  // a b - c
  return each([&](int j) { return fms(a.v[j], b.v[j], c.v[j]); });
}
BIGMODEL_INLINE Wide magnitude(const Wide& a) {
  return each([&](int j) { return magnitude(a.v[j]); });
}
BIGMODEL_INLINE Wide at_least(float bound, const Wide& a) {
  return each([&](int j) { return at_least(bound, a.v[j]); });
}
BIGMODEL_INLINE Wide at_most(float bound, const Wide& a) {
  return each([&](int j) { return at_most(bound, a.v[j]); });
}
BIGMODEL_INLINE Wide rounded(const Wide& a) {
  return each([&](int j) { return rounded(a.v[j]); });
}
BIGMODEL_INLINE Wide times_power_of_2(const Wide& a, const Wide& n) {
  return each([&](int j) { return times_power_of_2(a.v[j], n.v[j]); });
}
BIGMODEL_INLINE WideMask below(const Wide& a, const Wide& b) {
  WideMask r;
#pragma GCC unroll 4
  for (int j = 0; j < kWide; ++j) r.m[j] = below(a.v[j], b.v[j]);
  return r;
}
BIGMODEL_INLINE Wide choose(const WideMask& m, const Wide& yes, const Wide& no) {
  return each([&](int j) { return choose(m.m[j], yes.v[j], no.v[j]); });
}

BIGMODEL_INLINE float sum_of(const Wide& a) {
  Floats sum = a.v[0];
#pragma GCC unroll 4
  for (int j = 1; j < kWide; ++j) sum = sum + a.v[j];
  return sum_of(sum);
}

template <DType D>
BIGMODEL_INLINE Wide load_wide(const void* base, int64_t i) {
  return each([&](int j) {
    Floats v = load<D>(base, i + j * kLanes);
    // Else the compiler makes a load under a mask of what is only used under that mask, and the hardware does not
    // prefetch for those: four times the time.
    __asm__("" : "+v"(v));
    return v;
  });
}

// One element, for what is left of a row after its vectors.
template <DType D>
inline float load_one(const void* base, int64_t i) {
  if (D == DType::f32) return static_cast<const float*>(base)[i];
  const uint16_t h = static_cast<const uint16_t*>(base)[i];
  return D == DType::bf16 ? bf16_to_float(h) : f16_to_float(h);
}

template <DType D>
inline void store_one(void* base, int64_t i, float v) {
  if (D == DType::f32)
    static_cast<float*>(base)[i] = v;
  else
    static_cast<uint16_t*>(base)[i] = D == DType::bf16 ? float_to_bf16(v) : float_to_f16(v);
}

}  // namespace
}  // namespace bigmodel
