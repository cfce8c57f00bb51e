// The kernel and its launch, for one dtype; fused_dropout_<dtype>.cu instantiate it (so that they compile side by
// side).
//
// A warp takes a tile of 32 Philox blocks = 256 elements. Lane l computes block l's eight mask bits; memory moves in
// 16-byte vectors, lane after lane. In 16-bit dtypes a vector is a block; in float32 it is half a block, and the mask
// bits go to the lane that holds the half.
#pragma once

#include "elements.cuh"
#include "fused_dropout_launch.h"
#include "launch.h"

namespace bigmodel {

namespace {

constexpr int kThreads = 256, kWarp = 32, kBlocksPerSm = 6;
constexpr int kTile = kWarp * kPhiloxHalves;  // elements to a warp

// Elements one by one, for what is left over and for addresses that are not 16-byte aligned: a thread to a Philox
// block.
template <DType D, Activation A, bool kBackward>
__device__ void run_rest(const DropoutArgs& a, uint64_t seed, int64_t first) {
  using T = typename ElementOf<D>::type;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  int64_t block = first / kPhiloxHalves + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (; block * kPhiloxHalves < a.numel; block += threads) {
    const uint32_t bits = a.seed ? keep_bits(seed, a.first_block + block, a.threshold) : 0xffu;
    int64_t i = block * kPhiloxHalves, column = a.bias ? i % a.features : 0;
#pragma unroll 1
    for (int j = 0; j < kPhiloxHalves && i < a.numel; ++i, ++j) {
      float z = to_float(static_cast<const T*>(a.x)[i]);
      if (a.bias) z += bias_at<T>(a, column);
      if (++column == a.features) column = 0;
      const float other = a.other ? to_float(static_cast<const T*>(a.other)[i]) : 0.0f;
      from_float(element<A, kBackward>(z, other, a.other, bits >> j & 1, a.scale), static_cast<T*>(a.out)[i]);
    }
  }
}

// `tiles` full tiles are moved in vectors; bias_vectors: the bias may be too (aligned, and rows are whole vectors).
template <DType D, Activation A, bool kBackward>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm / 2)
    dropout_kernel(DropoutArgs a, int64_t tiles, bool bias_vectors) {
  using T = typename ElementOf<D>::type;
  constexpr int kVector = 16 / sizeof(T), kSteps = kPhiloxHalves / kVector;
  const uint64_t seed = a.seed ? *a.seed : 0;
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  int64_t tile = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  int64_t column[kSteps] = {}, column_step = 0;
  if (a.bias) {  // a division here, only additions in the loop
    column_step = warps * kTile % a.features;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) column[s] = (tile * kTile + (s * kWarp + lane) * kVector) % a.features;
  }
  for (; tile < tiles; tile += warps) {
    float z[kSteps][kVector], other[kSteps][kVector] = {};
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int64_t i = tile * kTile + (s * kWarp + lane) * kVector;
      load_vector(static_cast<const T*>(a.x) + i, z[s]);
      if (a.other) load_vector(static_cast<const T*>(a.other) + i, other[s]);
    }
    const uint32_t own = a.seed ? keep_bits(seed, a.first_block + tile * kWarp + lane, a.threshold) : 0xffu;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      uint32_t bits = own;
      if (kSteps == 2) bits = __shfl_sync(0xffffffffu, own, s * (kWarp / 2) + lane / 2) >> (lane % 2 * kVector);
      if (a.bias) {
        float b[kVector];
        if (!bias_vectors) {
          int64_t c = column[s];
#pragma unroll
          for (int j = 0; j < kVector; ++j) {
            b[j] = bias_at<T>(a, c);
            if (++c == a.features) c = 0;
          }
        } else if (a.bias_dtype == DType::f32) {
          load_vector(static_cast<const float*>(a.bias) + column[s], b);
        } else {
          load_vector(static_cast<const T*>(a.bias) + column[s], b);
        }
        column[s] += column_step;
        if (column[s] >= a.features) column[s] -= a.features;
#pragma unroll
        for (int j = 0; j < kVector; ++j) z[s][j] += b[j];
      }
#pragma unroll
      for (int j = 0; j < kVector; ++j)
        z[s][j] = element<A, kBackward>(z[s][j], other[s][j], a.other, bits >> j & 1, a.scale);
      store_vector(static_cast<T*>(a.out) + tile * kTile + (s * kWarp + lane) * kVector, z[s]);
    }
  }
  run_rest<D, A, kBackward>(a, seed, tiles * kTile);
}

template <DType D, Activation A, bool kBackward>
void launch_kernel(const DropoutArgs& a, DropoutLaunch where) {
  constexpr int kVector = 16 / sizeof(typename ElementOf<D>::type);
  const bool vectors = aligned(a.x) && aligned(a.other) && aligned(a.out);
  const int64_t tiles = vectors ? a.numel / kTile : 0;
  const bool bias_vectors = aligned(a.bias) && a.features % kVector == 0;
  const int64_t wanted = (a.numel + kThreads * kPhiloxHalves - 1) / (kThreads * kPhiloxHalves);
  const int64_t most = kBlocksPerSm * int64_t{device_attribute(cudaDevAttrMultiProcessorCount, where.device)};
  const unsigned grid = static_cast<unsigned>(wanted < most ? wanted : most);
  launch("fused_dropout", dropout_kernel<D, A, kBackward>, {grid, kThreads, 0, where.stream}, a, tiles, bias_vectors);
}

template <DType D, bool kBackward>
void launch_activation(const DropoutArgs& a, DropoutLaunch where) {
  switch (a.activation) {
    case Activation::none:
      return launch_kernel<D, Activation::none, kBackward>(a, where);
    case Activation::relu:
      return launch_kernel<D, Activation::relu, kBackward>(a, where);
    case Activation::leaky_relu:
      return launch_kernel<D, Activation::leaky_relu, kBackward>(a, where);
    case Activation::gelu:
      return launch_kernel<D, Activation::gelu, kBackward>(a, where);
    case Activation::silu:
      return launch_kernel<D, Activation::silu, kBackward>(a, where);
    case Activation::sigmoid:
      return launch_kernel<D, Activation::sigmoid, kBackward>(a, where);
    case Activation::tanh:
      return launch_kernel<D, Activation::tanh, kBackward>(a, where);
    case Activation::softplus:
      return launch_kernel<D, Activation::softplus, kBackward>(a, where);
  }
}

}  // namespace
}  // namespace bigmodel
