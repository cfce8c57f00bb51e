// A few rows of 16-bit activations times a sparse matrix in masks and units (sparse_bits.h), values in the same dtype;
// sparse_bits_<dtype>.cu instantiate it.
//
// A warp takes a row of W. Units, 128 columns, come one after another: their mask and their values are copied to shared
// memory in 16-byte pieces, kStages - 1 units ahead, past the registers. A lane has four columns of a unit: its first
// value's place is the number of stored columns before, one population count. Warps do not wait for each other.
#pragma once

#include "launch.h"
#include "linear_epilogue.h"
#include "sparse_bits.h"
#include "sparse_stage.cuh"

namespace bigmodel {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps, kStages = 8;

// Lane's four columns of x's rows, widened, from `column` on.
template <typename T, int kM>
__device__ __forceinline__ void load_columns(const BitsArgs& a, int column, float (&x)[kM][4]) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    uint2 four = make_uint2(0, 0);
    if (m < a.m && column < a.k)
      four = __ldg(reinterpret_cast<const uint2*>(static_cast<const T*>(a.x) + m * a.x_stride + column));
    x[m][0] = widen(T{static_cast<uint16_t>(four.x)});
    x[m][1] = widen(T{static_cast<uint16_t>(four.x >> 16)});
    x[m][2] = widen(T{static_cast<uint16_t>(four.y)});
    x[m][3] = widen(T{static_cast<uint16_t>(four.y >> 16)});
  }
}

template <typename T, int kM>
__device__ __forceinline__ void add_unit(const BitsArgs& a, int unit, const UnitStage<T>& stage, UnitValues values,
                                         int lane, float (&sum)[kM]) {
  float x[kM][4];
  load_columns<T, kM>(a, kUnit * unit + 4 * lane, x);
  const FourColumns four = four_columns(stage, values, lane);
  uint32_t at = four.first;
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (four.stored >> j & 1) {
      const float v = widen(stage.values[at++]);
#pragma unroll
      for (int m = 0; m < kM; ++m) sum[m] = fmaf(v, x[m][j], sum[m]);
    }
}

template <typename T, int kM>
__global__ void __launch_bounds__(kThreads) sparse_bits_kernel(BitsArgs a, LinearEpilogue epilogue) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = blockIdx.x * kWarps + warp;
  if (row >= a.n) return;
  UnitStage<T>* ring = dynamic_shared<UnitStage<T>>() + warp * kStages;
  const uint2* units = a.units + static_cast<int64_t>(row) * a.row_units;
  const auto load_units = [&](int first) {
    return first + lane < a.row_units ? __ldg(units + first + lane) : make_uint2(0, 0);
  };
  // Lanes hold 32 units each, those of this stretch and of the next.
  uint2 here = load_units(0), next = load_units(32);
  const auto copy = [&](int unit, bool ahead) {
    const UnitValues values = unit_values(a, ahead ? next : here, unit % 32);
    if (unit < a.row_units)
      copy_unit(a, static_cast<int64_t>(row) * a.row_units + unit, true, values, lane, ring[unit % kStages]);
    ptx::commit_async();
  };
  for (int unit = 0; unit < kStages - 1; ++unit) copy(unit, false);
  float sum[kM] = {};
  for (int unit = 0; unit < a.row_units; ++unit) {
    if (unit % 32 == 0 && unit) {
      here = next;
      next = load_units(unit + 32);
    }
    ptx::wait_async<kStages - 2>();
    __syncwarp();  // all lanes' pieces are there, and all lanes are done with the unit before
    const int ahead = unit + kStages - 1;
    copy(ahead, ahead / 32 != unit / 32);
    add_unit<T, kM>(a, unit, ring[unit % kStages], unit_values(a, here, unit % 32), lane, sum);
  }
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int step = 16; step; step /= 2) sum[m] += __shfl_xor_sync(0xffffffffu, sum[m], step);
    if (lane == 0 && m < a.m) finish(epilogue, m, row, sum[m]);
  }
}

template <typename T, int kM>
void launch_rows(const BitsArgs& a, const LinearEpilogue& epilogue, cudaStream_t stream) {
  const dim3 grid((a.n + kWarps - 1) / kWarps);
  launch("sparse_bits", sparse_bits_kernel<T, kM>, {grid, kThreads, kWarps * kStages * sizeof(UnitStage<T>), stream}, a,
         epilogue);
}

template <typename T>
void launch_bits(const BitsArgs& a, const LinearEpilogue& epilogue, cudaStream_t stream) {
  if (a.m <= 1) return launch_rows<T, 1>(a, epilogue, stream);
  if (a.m <= 2) return launch_rows<T, 2>(a, epilogue, stream);
  if (a.m <= 4) return launch_rows<T, 4>(a, epilogue, stream);
  launch_rows<T, 8>(a, epilogue, stream);
}

}  // namespace
}  // namespace bigmodel
