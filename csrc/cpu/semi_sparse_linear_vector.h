// The 2:4 kernels over whichever vector type simd_<isa>.h, and the operations on index words that the including file,
// have defined before; everything is in an anonymous namespace.
#pragma once

#include "row_sums_vector.h"
#include "semi_sparse_linear.h"

namespace bigmodel {
namespace {

// R rows, V vectors of the tiles' outputs at a time.
template <DType D, int R, int V>
void multiply(const float* x, int64_t panel, const void* values, const uint8_t* index, int64_t count, bool add,
              float* y) {
  constexpr int kCopies = copies_of(R * V), kBytes = D == DType::f32 ? 4 : 2;
  constexpr int kTile = static_cast<int>(kSemiTile), kSlots = static_cast<int>(kSemiGroups) * 2;
  constexpr int64_t kAhead = 4096 / kBytes;  // as far ahead as the processor's own prefetching does not see
  for (int n = 0; n < kTile; n += V * kLanes) {
    Floats sum[kCopies][R][V];
    begin_sums(y + n, kTile, add, sum);
    for (int64_t i = 0; i < count; ++i) {
      const float* from = x + i * panel;
      Ints word[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) word[v] = load_words(index + i * kSemiIndexBytes + (n + v * kLanes) * 4);
      for (int first = 0; first < kSlots; first += 4, from += 8) {
#pragma GCC unroll 4
        for (int s = 0; s < 4; ++s) {
          const int64_t at = i * kSemiValues + (first + s) * kTile + n;
          Floats w[V];
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) w[v] = load<D>(values, at + v * kLanes);
          for (int b = 0; b < V * kLanes * kBytes; b += 64)
            _mm_prefetch(static_cast<const char*>(values) + (at + kAhead) * kBytes + b, _MM_HINT_T0);
#pragma GCC unroll 24
          for (int r = 0; r < R; ++r) {
            const Floats four = broadcast4(from + r * kTile + s / 2 * 4);
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v)
              sum[s % kCopies][r][v] = fma(lanes_of(four, word[v]), w[v], sum[s % kCopies][r][v]);
          }
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) word[v] = shifted(word[v]);
        }
      }
    }
    end_sums(sum, y + n, kTile);
  }
}

template <DType D>
void expand_dtype(const void* values, const uint8_t* index, float* dense) {
  constexpr int kTile = static_cast<int>(kSemiTile);
  for (int n = 0; n < kTile; n += kLanes) {
    Ints word = load_words(index + n * 4);
    for (int group = 0; group < kSemiGroups; ++group) {
      const Floats a = load<D>(values, group * 2 * kTile + n), b = load<D>(values, (group * 2 + 1) * kTile + n);
      const Ints second = shifted(word);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k)
        store<DType::f32>(dense, (group * 4 + k) * kTile + n, only(a, word, k) + only(b, second, k));
      word = shifted(second);
    }
  }
}

// Two groups at a time: 8 sums in the AVX-512 version, 4 vectors' worth in the AVX2 one.
template <int V>
void grad_values(const float* x, const float* grad, int64_t rows, const uint8_t* index, bool add, float* dvalues) {
  constexpr int kTile = static_cast<int>(kSemiTile);
  for (int n = 0; n < kTile; n += V * kLanes) {
    Ints next[V];
    for (int v = 0; v < V; ++v) next[v] = load_words(index + (n + v * kLanes) * 4);
    for (int group = 0; group < kSemiGroups; group += 2) {
      Ints word[4][V];
      Floats sum[4][V];
      float* to = dvalues + group * 2 * kTile + n;
#pragma GCC unroll 4
      for (int s = 0; s < 4; ++s)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
          word[s][v] = next[v];
          next[v] = shifted(next[v]);
          sum[s][v] = add ? load<DType::f32>(to, s * kTile + v * kLanes) : set(0.0f);
        }
      for (int64_t m = 0; m < rows; ++m) {
        const float* row = x + m * kTile + group * 4;
        const Floats four[2] = {broadcast4(row), broadcast4(row + 4)};
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
          const Floats g = load<DType::f32>(grad, m * kTile + n + v * kLanes);
#pragma GCC unroll 4
          for (int s = 0; s < 4; ++s) sum[s][v] = fma(lanes_of(four[s / 2], word[s][v]), g, sum[s][v]);
        }
      }
#pragma GCC unroll 4
      for (int s = 0; s < 4; ++s)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) store<DType::f32>(to, s * kTile + v * kLanes, sum[s][v]);
    }
  }
}

void expand(const void* values, DType dtype, const uint8_t* index, float* dense) {
  if (dtype == DType::f32) return expand_dtype<DType::f32>(values, index, dense);
  if (dtype == DType::bf16) return expand_dtype<DType::bf16>(values, index, dense);
  return expand_dtype<DType::f16>(values, index, dense);
}

// Shares rows out among multiply<D, R, V> with as many sums as the registers hold: defined by the including file.
template <DType D>
void multiply_rows(const float* x, int64_t rows, const void* values, const uint8_t* index, int64_t count, bool add,
                   float* y);

void multiply_entry(const float* x, int64_t rows, const void* values, DType dtype, const uint8_t* index, int64_t count,
                    bool add, float* y) {
  if (dtype == DType::f32) return multiply_rows<DType::f32>(x, rows, values, index, count, add, y);
  if (dtype == DType::bf16) return multiply_rows<DType::bf16>(x, rows, values, index, count, add, y);
  return multiply_rows<DType::f16>(x, rows, values, index, count, add, y);
}

}  // namespace
}  // namespace bigmodel
