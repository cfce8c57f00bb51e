// M <= 4: memory is the limit, so the weights stream through registers once, 16 bytes a lane, and nothing else is read
// from memory twice. A warp takes two outputs at a time, its lanes divide K. The first weights are under way before the
// block quantizes all rows of x into shared memory (every block does: one launch instead of two).
#include <algorithm>

#include "int8_launch.h"
#include "int8_load.cuh"
#include "int8_quantize.cuh"
#include "int8_result.cuh"
#include "launch.h"

namespace bigmodel {
namespace {

constexpr int kThreads = 256, kWarp = 32, kWarps = kThreads / kWarp, kBlocksPerSm = 2;
constexpr int kOutputs = 2, kLoads = 4;     // of a warp at a time; loads of a lane for each, before the first use
constexpr int kStep = kLoads * kWarp * 16;  // inputs to a step
constexpr int kBytesOfRow = 16;             // quantized rows are zero-padded to multiples of this

struct Weights {
  uint4 of[kOutputs][kLoads];
};

template <int kWidth>
__device__ __forceinline__ void load_weights(const Int8Operands& o, int pair, int step, Weights& w) {
#pragma unroll
  for (int j = 0; j < kOutputs; ++j) {
    const int n = pair * kOutputs + j;
    const int8_t* row = o.b + n * o.b_stride;
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int i = step * kStep + (u * kWarp + static_cast<int>(threadIdx.x % kWarp)) * 16;
      w.of[j][u] = load_bytes<kWidth, true>(row + i, n < o.n ? o.k - i : 0);
    }
  }
}

// Fills q [kRows, padded] and gives the rows' scales.
template <typename T, int kRows>
__device__ __forceinline__ void quantize_block(const RowsToQuantize& x, int8_t* q, int padded,
                                               uint32_t (&of_warp)[kRows][kWarps], float (&scale)[kRows]) {
  constexpr int kElements = Chunk<T>::kElements;
  const int first = threadIdx.x * kElements;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const T* row = static_cast<const T*>(x.x) + static_cast<int64_t>(r) * x.k;
    uint32_t bits = 0;
    for (int i = first; i < x.k && r < x.rows; i += kThreads * kElements)
      bits = largest_magnitude(load_chunk(row, i, x.k, x.vectors), bits);
    bits = __reduce_max_sync(0xffffffffu, bits);
    if (threadIdx.x % kWarp == 0) of_warp[r][threadIdx.x / kWarp] = bits;
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    uint32_t bits = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) bits = max(bits, of_warp[r][w]);
    const RowScale own = row_scale(bits, x.fixed);
    scale[r] = own.scale;
    const T* row = static_cast<const T*>(x.x) + static_cast<int64_t>(r) * x.k;
    for (int i = first; i < padded; i += kThreads * kElements)
      store_rounded(q + r * padded + i, load_chunk(row, i, r < x.rows ? x.k : 0, x.vectors), own.inverse);
  }
}

template <int kRows>
__device__ __forceinline__ void multiply(const Weights& w, uint32_t q, int padded, int step,
                                         int32_t (&sum)[kOutputs][kRows]) {
#pragma unroll
  for (int u = 0; u < kLoads; ++u) {
    const int i = step * kStep + (u * kWarp + static_cast<int>(threadIdx.x % kWarp)) * 16;
    if (i >= padded) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const uint4 x = ptx::load_shared_16(q + static_cast<uint32_t>(r * padded + i));
#pragma unroll
      for (int j = 0; j < kOutputs; ++j) {
        const uint4 v = w.of[j][u];
        int32_t s = sum[j][r];
        s = __dp4a(static_cast<int>(v.x), static_cast<int>(x.x), s);
        s = __dp4a(static_cast<int>(v.y), static_cast<int>(x.y), s);
        s = __dp4a(static_cast<int>(v.z), static_cast<int>(x.z), s);
        sum[j][r] = __dp4a(static_cast<int>(v.w), static_cast<int>(x.w), s);
      }
    }
  }
}

// Adds up the lanes' sums; a lane to each result stores it.
template <int kRows>
__device__ __forceinline__ void store_pair(const Int8Operands& o, const Int8Result& result, int pair,
                                           const float (&scale)[kRows], int32_t (&sum)[kOutputs][kRows]) {
  int32_t mine[1] = {0};
  float x_scale = 0.0f;
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int j = 0; j < kOutputs; ++j)
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int32_t all = __reduce_add_sync(0xffffffffu, sum[j][r]);
      sum[j][r] = 0;
      if (lane == j * kRows + r) {
        mine[0] = all;
        x_scale = scale[r];
      }
    }
  const int n = pair * kOutputs + lane / kRows, m = lane % kRows;
  if (lane < kOutputs * kRows && m < o.m && n < o.n)
    store_sums<1>(result, m, n, o.n, load_columns<1>(result, n, o.n), x_scale, mine);
}

template <int kRows, int kWidth>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    int8_gemv_kernel(RowsToQuantize x, Int8Operands o, Int8Result result, int padded) {
  BIGMODEL_SHARED(of_warp, uint32_t[kRows][kWarps]);
  int8_t* q = dynamic_shared<int8_t>();
  const int pairs = (o.n + kOutputs - 1) / kOutputs, warps = gridDim.x * kWarps;
  const int steps = (o.k + kStep - 1) / kStep;
  int pair = blockIdx.x * kWarps + threadIdx.x / kWarp, step = 0;
  Weights now, next;
  load_weights<kWidth>(o, pair, 0, now);

  float scale[kRows];
  if (x.dtype == DType::f32) {
    quantize_block<float, kRows>(x, q, padded, of_warp, scale);
  } else if (x.dtype == DType::bf16) {
    quantize_block<Bf16, kRows>(x, q, padded, of_warp, scale);
  } else {
    quantize_block<F16, kRows>(x, q, padded, of_warp, scale);
  }
  __syncthreads();

  const uint32_t from = ptx::shared_address(q);
  int32_t sum[kOutputs][kRows] = {};
  while (pair < pairs) {
    const bool last = step + 1 >= steps;
    const int next_pair = last ? pair + warps : pair, next_step = last ? 0 : step + 1;
    load_weights<kWidth>(o, next_pair, next_step, next);
    multiply<kRows>(now, from, padded, step, sum);
    if (last) store_pair<kRows>(o, result, pair, scale, sum);
    pair = next_pair;
    step = next_step;
    now = next;
  }
}

template <int kRows, int kWidth>
void launch_kernel(const RowsToQuantize& x, const Int8Operands& o, const Int8Result& r, int multiprocessors,
                   cudaStream_t stream) {
  const int padded = (o.k + kBytesOfRow - 1) / kBytesOfRow * kBytesOfRow;
  const int pairs = (o.n + kOutputs - 1) / kOutputs, wanted = (pairs + kWarps - 1) / kWarps;
  const unsigned grid = static_cast<unsigned>(std::min(wanted, kBlocksPerSm * multiprocessors));
  launch("int8_gemv", int8_gemv_kernel<kRows, kWidth>,
         {grid, kThreads, static_cast<size_t>(kRows) * static_cast<size_t>(padded), stream}, x, o, r, padded);
}

template <int kRows>
void launch_width(const RowsToQuantize& x, const Int8Operands& o, const Int8Result& r, int multiprocessors,
                  cudaStream_t stream) {
  if (o.width == 16) return launch_kernel<kRows, 16>(x, o, r, multiprocessors, stream);
  if (o.width == 4) return launch_kernel<kRows, 4>(x, o, r, multiprocessors, stream);
  launch_kernel<kRows, 1>(x, o, r, multiprocessors, stream);
}

}  // namespace

size_t gemv_shared_bytes(int64_t m, int64_t k) {
  return static_cast<size_t>((m > 2 ? 4 : m) * ((k + kBytesOfRow - 1) / kBytesOfRow * kBytesOfRow));
}

void launch_int8_gemv(const RowsToQuantize& x, const Int8Operands& o, const Int8Result& r, int multiprocessors,
                      cudaStream_t stream) {
  if (o.m == 1) return launch_width<1>(x, o, r, multiprocessors, stream);
  if (o.m == 2) return launch_width<2>(x, o, r, multiprocessors, stream);
  launch_width<4>(x, o, r, multiprocessors, stream);
}

}  // namespace bigmodel
