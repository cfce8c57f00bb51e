// A few rows of activations times a sparse matrix in runs of values and column bytes; the kernel and its launch, for
// one pair of dtypes (sparse_rows_<dtype>.cu instantiate it).
//
// Memory is the limit, so nothing but values, column bytes and one run for each row and panel is read, once. A warp
// takes a row of W and eight of its runs at a time: 16 independent loads for each lane are under way together. A run's
// lanes read neighbours; the activations they multiply lie in shared memory, those of one column for all rows of x next
// to each other: one load.
#pragma once

#include "launch.h"
#include "linear_epilogue.h"
#include "sparse_args.h"
#include "staged_rows.cuh"

namespace bigmodel {
namespace {

constexpr int kRuns = 8;

template <typename X, typename V>
__device__ __forceinline__ void add_product(float& sum, V v, X x) {
  sum = fmaf(widen(v), widen(x), sum);
}
__device__ __forceinline__ void add_product(int32_t& sum, uint32_t v, uint32_t x) {
  sum = __dp4a(static_cast<int>(v), static_cast<int>(x), sum);
}

template <typename V>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<uint32_t> {
  using type = int32_t;
};

// Entry i of each run: all loads first.
template <typename X, typename V, int kM, typename Sum>
__device__ __forceinline__ void add_runs(const RowsArgs& a, const int2 (&run)[kRuns], const Column<X, kM>* xs, int lane,
                                         Sum (&sum)[kM]) {
  int longest = 0;
#pragma unroll
  for (int j = 0; j < kRuns; ++j) longest = max(longest, run[j].y);
  for (int i = lane; i - lane < longest; i += 32) {
    V v[kRuns];
    uint8_t c[kRuns];
#pragma unroll
    for (int j = 0; j < kRuns; ++j)
      if (i < run[j].y) {
        v[j] = static_cast<const V*>(a.values)[run[j].x + i];
        c[j] = __ldg(a.col + run[j].x + i);
      }
#pragma unroll
    for (int j = 0; j < kRuns; ++j)
      if (i < run[j].y) {
        const Column<X, kM> x = xs[j * a.panel + c[j]];
#pragma unroll
        for (int m = 0; m < kM; ++m) add_product(sum[m], v[j], x.row[m]);
      }
  }
}

template <typename X, typename V, int kM>
__global__ void __launch_bounds__(kThreads, kM <= 4 ? 3 : 2) sparse_rows_kernel(RowsArgs a, LinearEpilogue epilogue) {
  using Sum = typename SumOf<V>::type;
  Column<X, kM>* xs = dynamic_shared<Column<X, kM>>();
  const int lane = threadIdx.x % 32, row = blockIdx.x * kWarps + threadIdx.x / 32, m = blockIdx.y * kM;
  Sum sum[kM] = {};
  for (int first = 0; first < a.panels; first += a.pass_panels) {
    const int end = min(first + a.pass_panels, a.panels);
    if (first) __syncthreads();
    stage_rows<X, kInOrder>(a, m, first * a.panel, (end - first) * a.panel, xs);
    __syncthreads();
    if (row >= a.n) continue;
    for (int p = first; p < end; p += kRuns) {
      int2 run[kRuns];
#pragma unroll
      for (int j = 0; j < kRuns; ++j)
        run[j] = p + j < end ? __ldg(a.runs + static_cast<int64_t>(row) * a.panels + p + j) : make_int2(0, 0);
      add_runs<X, V, kM>(a, run, xs + (p - first) * a.panel, lane, sum);
    }
  }
  if (row >= a.n) return;
#pragma unroll
  for (int i = 0; i < kM; ++i) {
#pragma unroll
    for (int step = 16; step; step /= 2) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], step);
    if (lane == 0 && m + i < a.m) finish(epilogue, m + i, row, sum[i]);
  }
}

template <typename X, typename V, int kM>
void launch_columns(RowsArgs a, const LinearEpilogue& epilogue, cudaStream_t stream) {
  constexpr int kColumn = sizeof(Column<X, kM>);
  a.pass_panels = max(1, min(a.panels, kStagedBytes / (a.panel * kColumn)));
  const dim3 grid((a.n + kWarps - 1) / kWarps, static_cast<unsigned>((a.m + kM - 1) / kM));
  const size_t shared = static_cast<size_t>(a.pass_panels) * a.panel * kColumn;
  launch("sparse_rows", sparse_rows_kernel<X, V, kM>, {grid, kThreads, shared, stream}, a, epilogue);
}

template <typename X, typename V>
void launch_rows(const RowsArgs& a, const LinearEpilogue& epilogue, cudaStream_t stream) {
  if (a.m <= 1) return launch_columns<X, V, 1>(a, epilogue, stream);
  if (a.m <= 2) return launch_columns<X, V, 2>(a, epilogue, stream);
  if (a.m <= 4) return launch_columns<X, V, 4>(a, epilogue, stream);
  launch_columns<X, V, 8>(a, epilogue, stream);
}

}  // namespace
}  // namespace bigmodel
