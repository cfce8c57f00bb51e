// A block has 32 outputs, half a panel, and all of K, of which each of its warps takes every eighth slab of 16; at the
// end the warps' sums are added in the order of the warps. Weights stream from memory into registers, 16 bytes a lane
// and 128 bytes side by side, in the order in which they are packed, and go to the tensor cores as operand A:
//
//   lane (g, t) = (lane / 4, lane % 4) has outputs 4 g to 4 g + 3 at inputs 4 t to 4 t + 3 of the slab
//   mma i of two: rows g and g + 8 are outputs 4 g + 2 i and 4 g + 2 i + 1; columns 2 t, 2 t + 1, 2 t + 8 and 2 t + 9
//   are inputs 4 t to 4 t + 3, which for operand B, x, is four consecutive elements of row g
//
// so that nothing is shuffled or staged: x comes through the L1 cache. A slab takes about 40 instructions of a warp's
// time, where memory takes that of 140 (H100).
#pragma once

#include "elements.cuh"
#include "int8_weight_only_linear.h"
#include "launch.h"
#include "ptx_float16.h"
#include "ptx_mma.h"

namespace bigmodel {

namespace {

constexpr int kWarp = 32, kWarps = 8, kOutputs = 32, kSlab = 16, kPanelOutputs = 64;
constexpr int kAhead = 4;  // slabs of a warp whose loads are under way

// The operand type, and of how many such numbers an element of x is the sum.
template <DType D>
struct Operand {
  static constexpr int kParts = D == DType::f32 ? 3 : 1;
};

// Two int8, the low bytes of the halves of `pair`, as 16-bit floats. bfloat16: 128 + (the low seven bits) less 128 or,
// where the sign bit is set, 256; both have their integer in the last bits. float16: 1024 + (b + 128) less 1152.
template <DType D>
__device__ __forceinline__ uint32_t bytes_to_floats(uint32_t pair) {
  if (D == DType::f16) return ptx::sub_f16x2((pair ^ 0x00800080u) | 0x64006400u, 0x64806480u);
  return ptx::sub_bf16x2((pair & 0x007f007fu) | 0x43004300u, (pair & 0x00800080u) | 0x43004300u);
}

// Operand A's registers of two mma: w holds an output's four inputs in each word.
template <DType D>
__device__ __forceinline__ void weights(const uint4& w, uint32_t (&a)[2][4]) {
  const uint32_t word[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    a[i / 2][i % 2] = bytes_to_floats<D>(__byte_perm(word[i], 0, 0x4140));
    a[i / 2][i % 2 + 2] = bytes_to_floats<D>(__byte_perm(word[i], 0, 0x4342));
  }
}

// What is left of v without its first eight bits, which are a bfloat16 (the high half of v's bits); infinity and NaN
// leave nothing.
__device__ __forceinline__ float split(float v, uint32_t& high) {
  high = v == v ? __float_as_uint(v) & 0xffff0000u : 0x7fc00000u;
  const float rest = v - __uint_as_float(high);
  return rest == rest ? rest : 0.0f;
}

// Operand B's registers: four elements of a row, those from `left` on being zeros.
template <DType D>
__device__ __forceinline__ void activations(const void* row, int64_t k, int left, bool vector,
                                            uint32_t (&b)[Operand<D>::kParts][2]) {
  using T = typename ElementOf<D>::type;
  const T* p = static_cast<const T*>(row) + k;
  if constexpr (D == DType::f32) {
    float v[4] = {};
    if (vector && left >= 4) {
      const float4 four = __ldg(reinterpret_cast<const float4*>(p));
      v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) v[j] = j < left ? __ldg(p + j) : 0.0f;
    }
#pragma unroll
    for (int part = 0; part < 3; ++part)
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        uint32_t low, high;
        v[j] = split(v[j], low);
        v[j + 1] = split(v[j + 1], high);
        b[part][j / 2] = __byte_perm(low, high, 0x7632);
      }
  } else {
    if (vector && left >= 4) {
      const uint2 four = __ldg(reinterpret_cast<const uint2*>(p));
      b[0][0] = four.x, b[0][1] = four.y;
    } else {
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        const uint32_t low = j < left ? p[j].bits : 0, high = j + 1 < left ? p[j + 1].bits : 0;
        b[0][j / 2] = low | high << 16;
      }
    }
  }
}

template <DType D>
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if (D == DType::f16)
    ptx::mma_f16(d, a, b);
  else
    ptx::mma_bf16(d, a, b);
}

// kTiles tiles of 8 rows of x. `vector`: rows of x are whole and aligned vectors of 4 elements.
template <DType D, int kTiles>
__global__ void __launch_bounds__(kWarp* kWarps, 2)
    weight_only_kernel(LinearArgs args, const int8_t* weight, const float* weight_scale, bool vector) {
  using T = typename ElementOf<D>::type;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
  const int64_t groups = (args.k + 3) / 4, slabs = (groups + 3) / 4, halves = (args.n + kOutputs - 1) / kOutputs;
  const int64_t half = blockIdx.x % halves, row0 = blockIdx.x / halves * (8 * kTiles);
  // [groups][64][4], the slab of sums that comes first left out, from this lane's outputs on
  const int8_t* panel =
      weight + half / 2 * (groups + 1) * kPanelOutputs * 4 + kPanelOutputs * 4 + (half % 2 * kOutputs + g * 4) * 4;
  const auto load = [&](int64_t slab) {
    const int64_t group = slab * 4 + t;
    return group < groups ? ptx::load_streaming_16(panel + group * kPanelOutputs * 4) : uint4{0, 0, 0, 0};
  };

  float sums[kTiles][2][4] = {};
  uint4 ahead[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) ahead[i] = load(warp + i * kWarps);
  for (int64_t slab = warp; slab < slabs; slab += kAhead * kWarps) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t now = slab + i * kWarps;
      uint32_t a[2][4];
      weights<D>(ahead[i], a);
      ahead[i] = load(now + kAhead * kWarps);
      const int64_t k = (now * 4 + t) * 4, left = args.k - k;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const int64_t row = row0 + tile * 8 + g;
        uint32_t b[Operand<D>::kParts][2] = {};
        if (row < args.m && left > 0)
          activations<D>(static_cast<const T*>(args.x) + row * args.k, k, left < 4 ? static_cast<int>(left) : 4, vector,
                         b);
#pragma unroll
        for (int part = Operand<D>::kParts - 1; part >= 0; --part)  // the smallest first
#pragma unroll
          for (int j = 0; j < 2; ++j) multiply<D>(sums[tile][j], a[j], b[part]);
      }
    }
  }

  // [tile][row of the tile][output][warp]; the warps' sums are side by side, a word more than a bank's turn apart
  BIGMODEL_SHARED(partial, float[8][kOutputs][kWarps + 1]);
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    if (tile) __syncthreads();
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) partial[2 * t + i % 2][4 * g + 2 * j + i / 2][warp] = sums[tile][j][i];
    __syncthreads();
    const int output = lane;
    const int64_t row = row0 + tile * 8 + warp, n = half * kOutputs + output;
    if (row < args.m && n < args.n) {
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += partial[warp][output][w];
      sum = __fmul_rn(sum, __ldg(weight_scale + n));
      if (args.bias) sum = __fadd_rn(sum, parameter_at<T>(args.bias, args.bias_dtype, n));
      from_float(activated(args.activation, sum), static_cast<T*>(args.out)[row * args.n + n]);
    }
  }
}

template <DType D>
void launch_weight_only(const LinearArgs& a, const int8_t* weight, const float* weight_scale, cudaStream_t stream) {
  const int64_t tiles = (a.m + 7) / 8, halves = (a.n + kOutputs - 1) / kOutputs;
  const bool vector = a.k % 4 == 0 && aligned(a.x);
  const auto run = [&](auto kernel, int64_t at_once) {
    const int64_t blocks = (tiles + at_once - 1) / at_once * halves;
    launch("int8_weight_only_linear", kernel, {static_cast<unsigned>(blocks), kWarp * kWarps, 0, stream}, a, weight,
           weight_scale, vector);
  };
  if (tiles <= 1) return run(weight_only_kernel<D, 1>, 1);
  if (tiles <= 2) return run(weight_only_kernel<D, 2>, 2);
  run(weight_only_kernel<D, 4>, 4);
}

}  // namespace
}  // namespace bigmodel
