// First each row of x is quantized to int8, written in the order in which the second kernel reads it. That one streams
// the signs, turned into int8 numbers for the tensor cores' int8 product, on whose exact sums everything rests.
//
// Why the tensor cores: an H100 moves 14.5 bytes of signs a clock and multiprocessor, in which time it executes 8.8
// lane-instructions a byte, half of them on integers. A byte is eight signs; turned into int8 they are two registers of
// operand A, at 4 instructions (a shift that runs as a multiplication, and a logical one, each) and half an mma
// whatever the rows, up to 8. Adding and subtracting (dp4a on the same registers) is two more instructions a byte and
// row, and a table of the 256 sums of eight inputs one shared memory access a byte and row, which, at random addresses,
// takes about 3.4 passes: 9 bytes a clock at one row.
//
// A panel's signs, 16 bytes a lane: lane (g, t) = (lane / 4, lane % 4) has outputs 8 g to 8 g + 7 (4 g to 4 g + 3 in a
// narrow block) of word t of the step, two bytes for each output. Sign 1 becomes -64 and sign -1 becomes 64, which
// needs the fewest instructions; the scales are divided by -64 instead, exactly.
//
// The float products are added in the CPU's order: group after group, plane after plane. A task is one plane of one
// group; eight warps do eight tasks, leave their products in shared memory and meet, then each thread adds eight
// products to its sums while the next tasks begin.
#pragma once

#include "binary_coded_linear_launch.h"
#include "elements.cuh"
#include "launch.h"
#include "ptx_mma.h"

namespace bigmodel {

namespace {

constexpr int kWarp = 32, kWarps = 8, kThreads = kWarp * kWarps, kRows = 8, kPanel = 64;
constexpr int kUnitSteps = 2;  // loaded together
constexpr float kSmallestQuantizable = 0x1p-119f;

// What quantize_rows makes of a row: q of an element is that of x times inverse.
struct RowScale {
  float inverse, scale;
};

// Of a block's threads, each with the largest magnitude that it saw, infinity for NaN too.
__device__ __forceinline__ RowScale scale_of_row(float most) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
  BIGMODEL_SHARED(largest, float[kWarps]);
  if (threadIdx.x % kWarp == 0) largest[threadIdx.x / kWarp] = most;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kWarps; ++w) most = fmaxf(most, largest[w]);
  if (!(most <= 3.4028234664e38f)) return {0.0f, __uint_as_float(0x7fc00000u)};
  if (most < kSmallestQuantizable) return {0.0f, 0.0f};
  return {127.0f / most, most / 127.0f};
}

// A block to a row; q [m][groups][steps][4 words][16], the inputs of a word in the order of operand_signs.
template <DType D>
__global__ void __launch_bounds__(kThreads)
    binary_quantize_kernel(LinearArgs a, int64_t group_size, BinaryGroups groups, float* scale, int8_t* q) {
  using T = typename ElementOf<D>::type;
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(a.x) + row * a.k;
  float most = 0.0f;
  for (int64_t k = threadIdx.x; k < a.k; k += kThreads) {
    const float v = fabsf(to_float(x[k]));
    most = v <= 3.4028234664e38f ? fmaxf(most, v) : __uint_as_float(0x7f800000u);
    if (!(v <= 3.4028234664e38f)) break;
  }
  const RowScale s = scale_of_row(most);
  if (threadIdx.x == 0) scale[row] = s.scale;
  const int64_t in_group = groups.steps * kStepWords, words = groups.groups * in_group;
  for (int64_t word = threadIdx.x; word < words; word += kThreads) {
    const int64_t group = word / in_group, first = word % in_group * kWordInputs;
    const int64_t left = min(group_size - first, a.k - group * group_size - first);
    uint32_t packed[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int inputs[4] = {7 - i, 3 - i, 15 - i, 11 - i};
      packed[i] = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float v = inputs[j] < left ? to_float(x[group * group_size + first + inputs[j]]) : 0.0f;
        const int32_t number = s.inverse == 0.0f ? 0 : ptx::f32_to_s8(v * s.inverse);
        packed[i] |= (static_cast<uint32_t>(number) & 255u) << (8 * j);
      }
    }
    ptx::store_16(q + (row * words + word) * kWordInputs, packed[0], packed[1], packed[2], packed[3]);
  }
}

// Two outputs' signs of a word, bytes 0 and 1 and bytes 2 and 3 of `signs`, as operand A's registers of two mma.
__device__ __forceinline__ void operand_signs(uint32_t signs, uint32_t (&a)[2][4]) {
  const uint32_t low = signs << 4;  // below the top bits that are looked at are the neighbour's
  const uint32_t output[2] = {__byte_perm(signs, low, 0x5140), __byte_perm(signs, low, 0x7362)};
#pragma unroll
  for (int i = 0; i < 4; ++i)  // inputs 7 - i, 3 - i, 15 - i and 11 - i
#pragma unroll
    for (int j = 0; j < 2; ++j) a[i / 2][i % 2 * 2 + j] = (output[j] << i & 0x80808080u) | 0x40404040u;
}

// kWords 32-bit words of two outputs' signs, or of two scales, to a lane.
template <int kWords>
struct Words {
  uint32_t at[kWords];
};
template <int kWords>
__device__ __forceinline__ Words<kWords> load_words(const void* p) {
  if constexpr (kWords == 4) {
    const uint4 v = ptx::load_streaming_16(p);
    return {{v.x, v.y, v.z, v.w}};
  } else {
    const uint2 v = ptx::load_streaming_8(p);
    return {{v.x, v.y}};
  }
}

// A piece of a task whose loads are under way.
template <int kWords>
struct Unit {
  Words<kWords> signs[kUnitSteps], scales;
};

// Where a warp's loads are: a plane of a group, and steps of it.
struct Place {
  int64_t group;
  int plane, step;

  __device__ __forceinline__ void advance(int steps, int bits) {
    step += kUnitSteps;
    if (step < steps) return;
    step = 0;
    for (plane += kWarps; plane >= bits; plane -= bits) ++group;
  }
};

template <DType D, int kWords>
struct Panel {
  const BinaryCodedArgs& a;
  const BinaryGroups groups;
  const uint8_t* packed;   // from this lane's word and outputs on
  const uint16_t* scales;  // from its outputs on
  const int8_t* q;         // from its row and word on; null: there is no such row
  int word;                // of a step: the lane's

  __device__ __forceinline__ Unit<kWords> load(const Place& p) const {
    Unit<kWords> u = {};
    if (p.group >= groups.groups) return u;
    const int64_t inputs = min(a.group_size, a.linear.k - p.group * a.group_size);
    const int words = static_cast<int>((inputs + kWordInputs - 1) / kWordInputs);
#pragma unroll
    for (int s = 0; s < kUnitSteps; ++s)
      if ((p.step + s) * kStepWords + word < words)
        u.signs[s] = load_words<kWords>(
            packed + ((p.group * groups.words + (p.step + s) * kStepWords) * a.bits + p.plane) * (kPanel * 2));
    if (p.step + kUnitSteps >= groups.steps)
      u.scales = load_words<kWords>(scales + (p.group * a.bits + p.plane) * kPanel);
    return u;
  }

  __device__ __forceinline__ void multiply(const Place& p, const Unit<kWords>& u, int32_t (&sums)[kWords][4]) const {
    if (p.group >= groups.groups) return;
#pragma unroll
    for (int s = 0; s < kUnitSteps; ++s) {
      if (p.step + s >= groups.steps) break;
      uint4 x = {0, 0, 0, 0};
      if (q)
        x = __ldg(
            reinterpret_cast<const uint4*>(q + (p.group * groups.steps + p.step + s) * (kStepWords * kWordInputs)));
      const uint32_t b[2][2] = {{x.x, x.y}, {x.z, x.w}};
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        uint32_t operand[2][4];
        operand_signs(u.signs[s].at[i], operand);
        ptx::mma_s8(sums[i], operand[0], b[0]);
        ptx::mma_s8(sums[i], operand[1], b[1]);
      }
    }
  }
};

template <DType D, int kWords>
__global__ void __launch_bounds__(kThreads, 2)
    binary_coded_kernel(BinaryCodedArgs a, BinaryGroups groups, const float* scale, const int8_t* q) {
  using T = typename ElementOf<D>::type;
  constexpr int kOutputs = 16 * kWords, kSums = kRows * kOutputs / kThreads, kParts = kPanel / kOutputs;
  BIGMODEL_SHARED(products, float[2][kWarps][kRows][kOutputs + 1]);  // by round, task, row, output
  const LinearArgs& d = a.linear;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
  const int64_t parts = (d.n + kOutputs - 1) / kOutputs, part = blockIdx.x % parts, row0 = blockIdx.x / parts * kRows;
  const int64_t words = d.k / a.group_size * groups.words + (d.k % a.group_size + kWordInputs - 1) / kWordInputs;
  const int64_t panel = part / kParts;
  const int first = static_cast<int>(part % kParts) * kOutputs + g * 2 * kWords;  // output of the panel
  const Panel<D, kWords> p = {a,
                              groups,
                              a.packed + (panel * words + t) * a.bits * (kPanel * 2) + first * 2,
                              a.scales + panel * groups.groups * a.bits * kPanel + first,
                              row0 + g < d.m ? q + (row0 + g) * groups.bytes + t * kWordInputs : nullptr,
                              t};
  const int steps = static_cast<int>(groups.steps);
  const int64_t tasks = groups.groups * a.bits, rounds = (tasks + kWarps - 1) / kWarps;
  const int64_t units = rounds * ((steps + kUnitSteps - 1) / kUnitSteps);

  Place loading = {warp / a.bits, warp % a.bits, 0}, now = loading;
  Unit<kWords> ahead[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    ahead[i] = p.load(loading);
    loading.advance(steps, a.bits);
  }
  int32_t sums[kWords][4] = {};
  float z[kSums] = {};
  int64_t round = 0;
  for (int64_t u = 0; u < units; u += 2) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (u + i >= units) break;
      p.multiply(now, ahead[i], sums);
      if (now.step + kUnitSteps >= steps) {  // for all warps alike
        float (&mine)[kRows][kOutputs + 1] = products[round % 2][warp];
#pragma unroll
        for (int w = 0; w < kWords; ++w)
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const auto bits = static_cast<uint16_t>(ahead[i].scales.at[w] >> (c / 2 * 16));
            mine[2 * t + c % 2][(g * kWords + w) * 2 + c / 2] =
                __fmul_rn(__int2float_rn(sums[w][c]), ptx::f16_to_f32(bits) * -0.015625f);
            sums[w][c] = 0;
          }
        __syncthreads();
        const int count = static_cast<int>(min(int64_t{kWarps}, tasks - round * kWarps));
        for (int task = 0; task < count; ++task)
#pragma unroll
          for (int s = 0; s < kSums; ++s) {
            const int e = threadIdx.x + s * kThreads;
            z[s] = __fadd_rn(z[s], products[round % 2][task][e / kOutputs][e % kOutputs]);
          }
        ++round;
      }
      now.advance(steps, a.bits);
      ahead[i] = p.load(loading);
      loading.advance(steps, a.bits);
    }
  }
#pragma unroll
  for (int s = 0; s < kSums; ++s) {
    const int e = threadIdx.x + s * kThreads;
    const int64_t row = row0 + e / kOutputs, n = part * kOutputs + e % kOutputs;
    if (row >= d.m || n >= d.n) continue;
    float y = __fmul_rn(z[s], __ldg(scale + row));
    if (d.bias) y = __fadd_rn(y, parameter_at<T>(d.bias, d.bias_dtype, n));
    from_float(activated(d.activation, y), static_cast<T*>(d.out)[row * d.n + n]);
  }
}

template <DType D>
void launch_both(const BinaryCodedArgs& a, bool narrow, cudaStream_t stream) {
  const LinearArgs& d = a.linear;
  const BinaryGroups groups = binary_groups(d.k, a.group_size);
  auto* scale = static_cast<float*>(a.workspace);
  auto* q = static_cast<int8_t*>(a.workspace) + round_up(d.m * 4, 16);
  launch("binary_quantize", binary_quantize_kernel<D>, {static_cast<unsigned>(d.m), kThreads, 0, stream}, d,
         a.group_size, groups, scale, q);
  const int64_t blocks = ceil_div(d.m, kRows) * ceil_div(d.n, narrow ? kPanel / 2 : kPanel);
  launch("binary_coded_linear", narrow ? binary_coded_kernel<D, 2> : binary_coded_kernel<D, 4>,
         {static_cast<unsigned>(blocks), kThreads, 0, stream}, a, groups, scale, q);
}

}  // namespace
}  // namespace bigmodel
