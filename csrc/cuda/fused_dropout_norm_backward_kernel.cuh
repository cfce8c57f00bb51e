// The backward pass for one dtype. A group of warps takes a row at a time; its sums over rows are in shared memory,
// each element of them one thread's own until the end, when a block adds its groups' sums and writes them to its slab.
// In registers they would be three more for each element of a row, and there is bandwidth to spare: 24 bytes of shared
// memory an element and sum, beside 10 to 24 bytes of device memory an element.
#pragma once

#include "fused_dropout_norm_launch.h"
#include "launch.h"
#include "norm_row.cuh"

namespace bigmodel {

namespace {

constexpr int kNormBackwardMostWarps = static_cast<int>(kNormBackwardMostFeatures / (kNormTile * kNormBackwardTiles));

struct RowMeans {
  float gradient, product;  // of g = grad_y * weight, and of g times the normalised row
};

// The group's warps meet once a row; `parity` alternates, so that nobody writes what others may still read.
__device__ __forceinline__ RowMeans means_of_row(RowMeans v, int warps, int group, int parity, int features) {
  v = {sum_of_warp(v.gradient), sum_of_warp(v.product)};
  if (warps > 1) {
    BIGMODEL_SHARED(partial, float[2][2][kNormBackwardMostWarps]);
    const int first = group * warps;
    if (threadIdx.x % kWarp == 0) {
      partial[parity][0][threadIdx.x / kWarp] = v.gradient;
      partial[parity][1][threadIdx.x / kWarp] = v.product;
    }
    ptx::barrier_sync(1 + group, warps * kWarp);
    v = {0.0f, 0.0f};
    for (int w = first; w < first + warps; ++w) {
      v.gradient += partial[parity][0][w];
      v.product += partial[parity][1][w];
    }
  }
  return {v.gradient / static_cast<float>(features), v.product / static_cast<float>(features)};
}

template <int N>
__device__ __forceinline__ void add_to(float* sums, const float (&v)[N]) {
#pragma unroll
  for (int j = 0; j < N; j += 4) {
    float4* p = reinterpret_cast<float4*>(sums + j);
    float4 sum = *p;
    sum.x += v[j];
    sum.y += v[j + 1];
    sum.z += v[j + 2];
    sum.w += v[j + 3];
    *p = sum;
  }
}

// What a thread holds of a row.
template <DType D, bool kVector>
struct RowOperands {
  using P = Piece<D, kVector>;
  typename P::Early x[kNormBackwardTiles][P::kCount];
  float gradient[kNormBackwardTiles][P::kCount][P::kSize];  // of y, then of h
  float normal[kNormBackwardTiles][P::kCount][P::kSize];    // h, then normalised
};

// From the gradient of y to that of h, rounded, in r.gradient.
template <DType D, bool kVector>
__device__ __forceinline__ void norm_row_backward(const DropoutNormBackwardArgs& a, int64_t row, int warps, int group,
                                                  int parity, float* sums, int padded, RowOperands<D, kVector>& r) {
  using P = Piece<D, kVector>;
  using T = typename P::T;
  const int features = static_cast<int>(a.dropout.features), warp = threadIdx.x / kWarp - group * warps;
  const float mean = a.norm.rms ? 0.0f : __ldg(a.mean + row), rstd = __ldg(a.rstd + row);
  RowMeans means = {0.0f, 0.0f};
#pragma unroll
  for (int t = 0; t < kNormBackwardTiles; ++t)
#pragma unroll
    for (int s = 0; s < P::kCount; ++s) {
      const int column = P::column(warp + t * warps, s);
      float product[P::kSize];
#pragma unroll
      for (int j = 0; j < P::kSize; ++j) {
        r.normal[t][s][j] = P::inside(column, j, features) ? (r.normal[t][s][j] - mean) * rstd : 0.0f;
        product[j] = r.gradient[t][s][j] * r.normal[t][s][j];
      }
      add_to(sums + column, product);
      add_to(sums + padded + column, r.gradient[t][s]);
      if (a.norm.weight) {
        float weight[P::kSize];
        P::load_parameters(a.norm.weight, a.norm.weight_dtype, column, features, weight);
#pragma unroll
        for (int j = 0; j < P::kSize; ++j) r.gradient[t][s][j] *= weight[j];
      }
#pragma unroll
      for (int j = 0; j < P::kSize; ++j) {
        means.gradient += r.gradient[t][s][j];
        means.product += r.gradient[t][s][j] * r.normal[t][s][j];
      }
    }
  means = means_of_row(means, warps, group, parity, features);
  if (a.norm.rms) means.gradient = 0.0f;
  const int64_t first = row * features;
#pragma unroll
  for (int t = 0; t < kNormBackwardTiles; ++t)
#pragma unroll
    for (int s = 0; s < P::kCount; ++s) {
      const int column = P::column(warp + t * warps, s);
#pragma unroll
      for (int j = 0; j < P::kSize; ++j)
        r.gradient[t][s][j] = (r.gradient[t][s][j] - means.gradient - r.normal[t][s][j] * means.product) * rstd;
      if (a.grad_h) {
        float more[P::kSize];
        P::load(static_cast<const T*>(a.grad_h) + first, column, features, more);
#pragma unroll
        for (int j = 0; j < P::kSize; ++j) r.gradient[t][s][j] += more[j];
      }
      P::store(static_cast<T*>(a.dh) + first, column, features, r.gradient[t][s]);
    }
}

// From the gradient of h to that of x.
template <DType D, bool kVector>
__device__ __forceinline__ void dropout_row_backward(const DropoutArgs& d, int64_t first, int warp, int warps,
                                                     float* bias_sums, RowOperands<D, kVector>& r) {
  using P = Piece<D, kVector>;
  using T = typename P::T;
  const int features = static_cast<int>(d.features), tiles = (features + kNormTile - 1) / kNormTile;
  const uint64_t seed = d.seed ? *d.seed : 0;  // here: registers are scarce before
#pragma unroll
  for (int t = 0; t < kNormBackwardTiles; ++t) {
    const int tile = warp + t * warps;
    if (tile >= tiles) break;
    uint32_t keep[P::kCount];
    keep_of_tile<D, kVector>(d, seed, first, tile, keep);
#pragma unroll
    for (int s = 0; s < P::kCount; ++s) {
      const int column = P::column(tile, s);
      float z[P::kSize];
      P::load_late(r.x[t][s], static_cast<const T*>(d.x) + first, column, features, z);
      if (d.bias) {
        float b[P::kSize];
        P::load_parameters(d.bias, d.bias_dtype, column, features, b);
#pragma unroll
        for (int j = 0; j < P::kSize; ++j) z[j] += b[j];
      }
      elements<true>(d.activation, z, r.gradient[t][s], true, keep[s], d.scale);
      P::store(static_cast<T*>(d.out) + first, column, features, z);
      if (d.bias) add_to(bias_sums + column, z);
    }
  }
}

template <DType D, bool kVector>
__global__ void __launch_bounds__(kWarp* kNormBackwardMostWarps, 1)
    norm_backward_kernel(DropoutNormBackwardArgs a, int warps, int groups) {
  using P = Piece<D, kVector>;
  using T = typename P::T;
  const DropoutArgs& d = a.dropout;
  const int features = static_cast<int>(d.features), padded = warps * kNormBackwardTiles * kNormTile;
  const int vectors = a.vectors, group = threadIdx.x / kWarp / warps;
  const int warp = threadIdx.x / kWarp - group * warps;
  float* sums = dynamic_shared<float>() + group * vectors * padded;  // [vectors][padded]
  float* bias_sums = sums + (a.dh ? 2 : 0) * padded;
  const float zeros[P::kSize] = {};
  for (int v = 0; v < vectors; ++v)
#pragma unroll
    for (int t = 0; t < kNormBackwardTiles; ++t)
#pragma unroll
      for (int s = 0; s < P::kCount; ++s)
#pragma unroll
        for (int j = 0; j < P::kSize; ++j) sums[v * padded + P::column(warp + t * warps, s) + j] = zeros[j];
  int parity = 0;
  for (int64_t row = int64_t{blockIdx.x} * groups + group; row < a.rows; row += int64_t{gridDim.x} * groups) {
    const int64_t first = row * features;
    RowOperands<D, kVector> r;
#pragma unroll
    for (int t = 0; t < kNormBackwardTiles; ++t)
#pragma unroll
      for (int s = 0; s < P::kCount; ++s) {
        const int column = P::column(warp + t * warps, s);
        P::load(static_cast<const T*>(d.other) + first, column, features, r.gradient[t][s]);
        r.x[t][s] = P::load_early(static_cast<const T*>(d.x) + first, column, features);
        if (a.dh) P::load(static_cast<const T*>(a.h) + first, column, features, r.normal[t][s]);
      }
    if (a.dh) norm_row_backward(a, row, warps, group, parity, sums, padded, r);
    dropout_row_backward(d, first, warp, warps, bias_sums, r);
    parity ^= 1;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < vectors * features; i += blockDim.x) {
    const float* from = dynamic_shared<float>() + i / features * padded + i % features;
    float sum = 0.0f;
    for (int g = 0; g < groups; ++g) sum += from[g * vectors * padded];
    a.slabs[int64_t{blockIdx.x} * vectors * features + i] = sum;
  }
}

template <DType D>
void launch_backward(const DropoutNormBackwardArgs& a, int64_t slabs, cudaStream_t stream) {
  const DropoutArgs& d = a.dropout;
  const int warps = norm_warps(d.features, kNormBackwardTiles), groups = norm_rows_at_once(d.features);
  const bool vector = d.features % kPhiloxHalves == 0 && aligned(d.x) && aligned(d.other) && aligned(d.out) &&
                      aligned(d.bias) && aligned(a.h) && aligned(a.grad_h) && aligned(a.dh) && aligned(a.norm.weight);
  const size_t shared =
      sizeof(float) * static_cast<size_t>(a.vectors * groups * warps * kNormBackwardTiles * kNormTile);
  launch("fused_dropout_norm_backward", vector ? norm_backward_kernel<D, true> : norm_backward_kernel<D, false>,
         {static_cast<unsigned>(slabs), static_cast<unsigned>(kWarp * warps * groups), shared, stream}, a, warps,
         groups);
}

}  // namespace
}  // namespace bigmodel
