// The forward pass for one dtype: a row to a warp, or, of more than 1024 features, to a block. A block's warps meet
// twice, for the mean and for the variance about it.
#pragma once

#include "fused_dropout_norm_launch.h"
#include "launch.h"
#include "norm_row.cuh"

namespace bigmodel {

namespace {

constexpr int kNormMostWarps = static_cast<int>(kNormMostFeatures / (kNormTile * kNormTiles));
constexpr int kNormSmallRows = 4;  // to a block, if a row is a warp's

// `round` counts the sums of a row: each has its own place, so that one barrier is enough.
__device__ __forceinline__ float sum_of_row(float v, int warps, int round) {
  v = sum_of_warp(v);
  if (warps == 1) return v;
  BIGMODEL_SHARED(partial, float[2][kNormMostWarps]);
  if (threadIdx.x % kWarp == 0) partial[round][threadIdx.x / kWarp] = v;
  __syncthreads();
  v = 0.0f;
  for (int w = 0; w < warps; ++w) v += partial[round][w];
  return v;
}

template <DType D, bool kVector>
__global__ void __launch_bounds__(kWarp* kNormMostWarps) norm_kernel(DropoutNormArgs a, int warps) {
  using P = Piece<D, kVector>;
  using T = typename P::T;
  const DropoutArgs& d = a.dropout;
  const int features = static_cast<int>(d.features), tiles = (features + kNormTile - 1) / kNormTile;
  const int warp = threadIdx.x / kWarp, first_tile = warps == 1 ? 0 : warp;
  const int64_t row = warps == 1 ? int64_t{blockIdx.x} * kNormSmallRows + warp : int64_t{blockIdx.x};
  if (row >= a.rows) return;
  const int64_t first = row * features;
  const T *x = static_cast<const T*>(d.x) + first, *residual = static_cast<const T*>(d.other) + (d.other ? first : 0);
  T *h = static_cast<T*>(d.out) + first, *y = static_cast<T*>(a.y) + first;

  float v[kNormTiles][P::kCount][P::kSize], other[kNormTiles][P::kCount][P::kSize];
#pragma unroll
  for (int t = 0; t < kNormTiles; ++t)  // all loads before the first use
#pragma unroll
    for (int s = 0; s < P::kCount; ++s) {
      const int column = P::column(first_tile + t * warps, s);
      P::load(x, column, features, v[t][s]);
#pragma unroll
      for (int j = 0; j < P::kSize; ++j) other[t][s][j] = 0.0f;
      if (d.other) P::load(residual, column, features, other[t][s]);
    }

  const uint64_t seed = d.seed ? *d.seed : 0;
  float sum = 0.0f;
#pragma unroll
  for (int t = 0; t < kNormTiles; ++t) {
    const int tile = first_tile + t * warps;
    if (tile >= tiles) break;
    uint32_t keep[P::kCount];
    keep_of_tile<D, kVector>(d, seed, first, tile, keep);
#pragma unroll
    for (int s = 0; s < P::kCount; ++s) {
      const int column = P::column(tile, s);
      if (d.bias) {
        float b[P::kSize];
        P::load_parameters(d.bias, d.bias_dtype, column, features, b);
#pragma unroll
        for (int j = 0; j < P::kSize; ++j) v[t][s][j] += b[j];
      }
      elements<false>(d.activation, v[t][s], other[t][s], d.other, keep[s], d.scale);
      P::store(h, column, features, v[t][s]);
#pragma unroll
      for (int j = 0; j < P::kSize; ++j) sum += P::inside(column, j, features) ? v[t][s][j] : 0.0f;
    }
  }
  const float mean = a.norm.rms ? 0.0f : sum_of_row(sum, warps, 0) / static_cast<float>(features);
  float square = 0.0f;
#pragma unroll
  for (int t = 0; t < kNormTiles; ++t)
#pragma unroll
    for (int s = 0; s < P::kCount; ++s)
#pragma unroll
      for (int j = 0; j < P::kSize; ++j) {
        v[t][s][j] -= mean;
        if (P::inside(P::column(first_tile + t * warps, s), j, features)) square += v[t][s][j] * v[t][s][j];
      }
  const float variance = sum_of_row(square, warps, 1) / static_cast<float>(features);
  const float rstd = 1.0f / sqrtf(variance + a.norm.eps);
  if (threadIdx.x % kWarp == 0 && first_tile == 0) {
    if (!a.norm.rms) a.mean[row] = mean;
    a.rstd[row] = rstd;
  }
#pragma unroll
  for (int t = 0; t < kNormTiles; ++t)
#pragma unroll
    for (int s = 0; s < P::kCount; ++s) {
      const int column = P::column(first_tile + t * warps, s);
      float weight[P::kSize], bias[P::kSize];
      if (a.norm.weight) P::load_parameters(a.norm.weight, a.norm.weight_dtype, column, features, weight);
      if (a.norm.norm_bias) P::load_parameters(a.norm.norm_bias, a.norm.norm_bias_dtype, column, features, bias);
#pragma unroll
      for (int j = 0; j < P::kSize; ++j) {
        v[t][s][j] *= rstd;
        if (a.norm.weight) v[t][s][j] *= weight[j];
        if (a.norm.norm_bias) v[t][s][j] += bias[j];
      }
      P::store(y, column, features, v[t][s]);
    }
}

template <DType D>
void launch_norm_forward(const DropoutNormArgs& a, cudaStream_t stream) {
  const DropoutArgs& d = a.dropout;
  const int warps = norm_warps(d.features, kNormTiles);
  const bool vector = d.features % kPhiloxHalves == 0 && aligned(d.x) && aligned(d.other) && aligned(d.out) &&
                      aligned(a.y) && aligned(d.bias) && aligned(a.norm.weight) && aligned(a.norm.norm_bias);
  const int64_t blocks = warps == 1 ? (a.rows + kNormSmallRows - 1) / kNormSmallRows : a.rows;
  const unsigned threads = static_cast<unsigned>(kWarp * (warps == 1 ? kNormSmallRows : warps));
  launch("fused_dropout_norm", vector ? norm_kernel<D, true> : norm_kernel<D, false>,
         {static_cast<unsigned>(blocks), threads, 0, stream}, a, warps);
}

}  // namespace
}  // namespace bigmodel
