// A few rows of activations in shared memory, those of one column next to each other, for kernels whose warps take a
// row of W each and read columns in no order.
#pragma once

#include "elements.h"

namespace bigmodel {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kStagedBytes = 32 << 10;  // more columns take several passes

template <typename T, int kM>
struct alignas(kM * sizeof(T) > 16 ? 16 : kM * sizeof(T)) Column {
  T row[kM];
};

// Where column c is. Reversed: 32 columns backwards, behind one place that belongs to none, so that the number of the
// highest bit in a word, or -1 without one, finds it, and lanes whose columns are 32 apart read different banks.
enum Staging { kInOrder, kReversed };
template <Staging kStaging>
__host__ __device__ __forceinline__ int staged_at(int c) {
  return kStaging == kInOrder ? c : c / 32 * 33 + 32 - c % 32;
}

// x's rows from m on, columns [first, first + count); zeros where there are none.
template <typename X, Staging kStaging, typename Args, typename T, int kM>
__device__ __forceinline__ void stage_rows(const Args& a, int64_t m, int first, int count, Column<T, kM>* xs) {
  for (int c = threadIdx.x; c < count; c += kThreads) {
    Column<T, kM> column = {};
    if (first + c < a.k) {
#pragma unroll
      for (int i = 0; i < kM; ++i)
        if (m + i < a.m) {
          const X x = static_cast<const X*>(a.x)[(m + i) * a.x_stride + first + c];
          if constexpr (sizeof(T) == sizeof(X))
            column.row[i] = x;
          else
            column.row[i] = widen(x);
        }
    }
    xs[staged_at<kStaging>(c)] = column;
  }
}

}  // namespace
}  // namespace bigmodel
