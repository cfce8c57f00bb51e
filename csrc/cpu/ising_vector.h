// The kernels of ising.h over GCC's and Clang's generic vectors of 16 floats, which each instruction set's file
// compiles for itself: one register with AVX-512, two with AVX2, four without. Everything is in an anonymous namespace.
#pragma once

#include "../common/philox.h"
#include "ising.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed between inlined functions only
#endif

namespace bigmodel {
namespace {

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint8_t Bytes __attribute__((vector_size(16)));

inline Floats& at(float* p, int64_t i) { return *reinterpret_cast<Floats*>(p + i * kIsingLanes); }
inline const Floats& at(const float* p, int64_t i) { return *reinterpret_cast<const Floats*>(p + i * kIsingLanes); }
inline Bytes& at(uint8_t* p, int64_t i) { return *reinterpret_cast<Bytes*>(p + i * kIsingLanes); }
inline Ints codes_at(const uint8_t* p, int64_t i) {
  return __builtin_convertvector(*reinterpret_cast<const Bytes*>(p + i * kIsingLanes), Ints);
}

inline bool any(const Ints& v) {
  int32_t found = 0;
  for (int lane = 0; lane < kIsingLanes; ++lane) found |= v[lane];
  return found != 0;
}

template <int T>
void update_some(float* field, const float* matrix, int64_t stride, const float* change, const int32_t* listed,
                 int64_t count) {
  Floats sum[T];
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) sum[t] = Floats{};
  for (int64_t i = 0; i < count; ++i) {
    const Floats c = at(change, listed[i]);
    const float* m = matrix + listed[i] * stride;
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) sum[t] += c * m[t];
  }
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) at(field, t) += sum[t];
}

void update(float* field, int64_t n, const float* matrix, int64_t stride, const float* change, const int32_t* listed,
            int64_t count) {
  int64_t j = 0;
  for (; j + kUpdateTile <= n; j += kUpdateTile)
    update_some<kUpdateTile>(field + j * kIsingLanes, matrix + j, stride, change, listed, count);
  for (; j < n; ++j) update_some<1>(field + j * kIsingLanes, matrix + j, stride, change, listed, count);
}

// The moments of one input times how far its weight moved, onto `n` places of the field.
inline void spread(float* field, const float* row, const Floats& moved, int64_t n) {
  for (int64_t j = 0; j < n; ++j) at(field, j) += moved * row[j];
}

void descend(const IsingBlock& block, float* gain) {
  for (int64_t k = 0; k < block.count; ++k) {
    const float* row = block.moments + k * block.stride;
    const Ints before = codes_at(block.codes, k);
    Floats now = {};
    for (int c = 0; c < block.levels; ++c) now = before == c ? at(block.level, c) : now;
    const Floats target = now - at(block.field, k) * (1.0f / row[k]), miss = now - target;
    // A move must gain more than rounding can feign, or two moves could take turns for ever.
    Floats best = miss * miss * (1.0f - 1e-5f), value = now;
    Ints code = before;
    for (int c = 0; c < block.levels; ++c) {
      const Floats level = at(block.level, c), off = level - target, far = off * off;
      const Ints closer = far < best;
      best = closer ? far : best;
      value = closer ? level : value;
      code = closer ? Ints{} + c : code;
    }
    if (!any(code != before)) continue;
    const Floats moved = value - now;
    at(gain, 0) += code != before ? row[k] * (miss * miss - best) : Floats{};
    at(block.change, k) += moved;
    at(block.codes, k) = __builtin_convertvector(code, Bytes);
    spread(block.field, row, moved, block.count);
  }
}

void anneal(const IsingBlock& block, const IsingHeat& heat, float* gain) {
  const Floats temperature = at(heat.temperature, 0);
  for (int64_t k = 0; k < block.count; ++k) {
    const float* row = block.moments + k * block.stride;
    const Ints before = codes_at(block.codes, k);
    Ints code;
    Floats threshold;
    for (int lane = 0; lane < kIsingLanes; ++lane) {
      const PhiloxBlock draw = philox_4x32({{heat.input + static_cast<uint32_t>(k), heat.row + lane, heat.sweep, 0}},
                                           static_cast<uint32_t>(heat.seed), static_cast<uint32_t>(heat.seed >> 32));
      threshold[lane] = heat.threshold[draw.word[0] % kIsingDraws];
      code[lane] = before[lane] ^ static_cast<int32_t>(1 + draw.word[1] % static_cast<uint32_t>(block.levels - 1));
    }
    Floats now = {}, value = {};
    for (int c = 0; c < block.levels; ++c) {
      now = before == c ? at(block.level, c) : now;
      value = code == c ? at(block.level, c) : value;
    }
    Floats moved = value - now;
    const Floats rise = moved * (2.0f * at(block.field, k) + moved * row[k]);
    const Ints accepted = rise < temperature * threshold;
    if (!any(accepted)) continue;
    moved = accepted ? moved : Floats{};
    at(gain, 0) -= accepted ? rise : Floats{};
    at(block.change, k) += moved;
    at(block.codes, k) = __builtin_convertvector(accepted ? code : before, Bytes);
    spread(block.field, row, moved, block.count);
  }
}

void start(const IsingStart& s) {
  for (int64_t p = s.hi - 1; p >= s.lo; --p) {
    const int64_t k = s.order[p];
    const float* alpha = s.alpha + k / s.group_size * s.bits * kIsingLanes;
    const Floats weight = at(s.weight, k), target = weight - at(s.field, p);
    Floats best = {}, value = {};
    Ints code = {};
    for (int c = 0; c < 1 << s.bits; ++c) {
      Floats level = {};
      for (int b = 0; b < s.bits; ++b) level += c >> b & 1 ? at(alpha, b) : -at(alpha, b);
      const Floats off = level - target, far = off * off;
      const Ints closer = c == 0 ? Ints{} - 1 : Ints(far < best);
      best = closer ? far : best;
      value = closer ? level : value;
      code = closer ? Ints{} + c : code;
    }
    const Floats error = value - weight;
    at(s.change, p - s.lo) = error;
    at(s.codes, k) = __builtin_convertvector(code, Bytes);
    spread(s.field + s.lo * kIsingLanes, s.factor + p * s.inputs + s.lo, error, p - s.lo);
  }
}

void spins(const uint8_t* codes, int64_t count, int bits, float* spins) {
  const Floats one = Floats{} + 1.0f;
  for (int b = 0; b < bits; ++b)
    for (int64_t k = 0; k < count; ++k) at(spins, b * count + k) = (codes_at(codes, k) & (1 << b)) != 0 ? one : -one;
}

void dot(const float* a, const float* b, int64_t n, float* sums) {
  Floats sum = {};
  for (int64_t i = 0; i < n; ++i) sum += at(a, i) * at(b, i);
  at(sums, 0) = sum;
}

void add(float* to, const float* by, const float* step, int64_t n) {
  const Floats s = at(step, 0);
  for (int64_t i = 0; i < n; ++i) at(to, i) += s * at(by, i);
}

constexpr IsingKernels kKernels = {&update, &descend, &anneal, &start, &spins, &dot, &add};

}  // namespace
}  // namespace bigmodel
