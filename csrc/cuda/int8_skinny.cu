// M <= 16 by tensor cores: memory is the limit, so the weights go from memory straight to registers, once. Sums do not
// depend on the order of K as long as both operands have the same one, so a lane's 16 bytes of a weight row are its
// part of two mma's: no shuffling and no shared memory in the loop. A block takes 8 kGroups outputs and all rows; its
// warps divide K in blocks of 64 and add their sums up through shared memory, in the order of the warps.
#include "int8_launch.h"
#include "int8_load.cuh"
#include "int8_result.cuh"
#include "launch.h"
#include "ptx_mma.h"

namespace bigmodel {
namespace {

constexpr int kThreads = 256, kWarp = 32, kWarps = kThreads / kWarp;
constexpr int kRows = kSkinnyRows, kBlockOfK = 64, kUnroll = 2;

// Of kUnroll blocks of K, kWarps blocks apart: 16 bytes of rows g and g + 8 of a, and of kGroups rows of b.
template <int kGroups>
struct Fragments {
  uint4 a[kUnroll][2], b[kUnroll][kGroups];
};

template <int kGroups, int kWidth>
__device__ __forceinline__ void load_fragments(const Int8Operands& o, int block_of_k, Fragments<kGroups>& f) {
  const int lane = threadIdx.x % kWarp, group = lane / 4;
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int i = (block_of_k + u * kWarps) * kBlockOfK + lane % 4 * 16;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const int n = (static_cast<int>(blockIdx.x) * kGroups + j) * 8 + group;
      f.b[u][j] = load_bytes<kWidth, true>(o.b + n * o.b_stride + i, n < o.n ? o.k - i : 0);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int m = group + 8 * h;
      f.a[u][h] = load_bytes<kWidth, false>(o.a + m * o.a_stride + i, m < o.m ? o.k - i : 0);
    }
  }
}

template <int kGroups>
__device__ __forceinline__ void multiply(const Fragments<kGroups>& f, int32_t (&sum)[kGroups][4]) {
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const uint4 low = f.a[u][0], high = f.a[u][1];
    const uint32_t a0[4] = {low.x, high.x, low.y, high.y}, a1[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const uint32_t b0[2] = {f.b[u][j].x, f.b[u][j].y}, b1[2] = {f.b[u][j].z, f.b[u][j].w};
      ptx::mma_s8(sum[j], a0, b0);
      ptx::mma_s8(sum[j], a1, b1);
    }
  }
}

template <int kGroups, int kWidth>
__global__ void __launch_bounds__(kThreads, 2) int8_skinny_kernel(Int8Operands o, Int8Result result) {
  constexpr int kColumns = 8 * kGroups, kPitch = kGroups == 1 ? 8 : kColumns + 8;  // no two lanes' pairs in one bank
  BIGMODEL_SHARED(of_warp, int32_t[kWarps][kRows][kPitch]);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int blocks_of_k = (o.k + kBlockOfK - 1) / kBlockOfK;
  int32_t sum[kGroups][4] = {};
  Fragments<kGroups> now, next;
  load_fragments<kGroups, kWidth>(o, warp, now);
  for (int i = warp; i < blocks_of_k; i += kWarps * kUnroll) {
    load_fragments<kGroups, kWidth>(o, i + kWarps * kUnroll, next);
    multiply<kGroups>(now, sum);
    now = next;
  }
#pragma unroll
  for (int j = 0; j < kGroups; ++j)
#pragma unroll
    for (int h = 0; h < 2; ++h)
      *reinterpret_cast<int2*>(&of_warp[warp][lane / 4 + 8 * h][8 * j + lane % 4 * 2]) =
          make_int2(sum[j][2 * h], sum[j][2 * h + 1]);
  __syncthreads();

  const int m = threadIdx.x / (kColumns / 4), column = threadIdx.x % (kColumns / 4) * 4;
  const int n = static_cast<int>(blockIdx.x) * kColumns + column;
  if (m >= o.m || n >= o.n) return;
  int32_t all[4] = {};
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    const int4 part = *reinterpret_cast<const int4*>(&of_warp[w][m][column]);
    all[0] += part.x;
    all[1] += part.y;
    all[2] += part.z;
    all[3] += part.w;
  }
  store_sums<4>(result, m, n, o.n, load_columns<4>(result, n, o.n), x_scale_of(result, m), all);
}

template <int kGroups, int kWidth>
void launch_kernel(const Int8Operands& o, const Int8Result& r, cudaStream_t stream) {
  const unsigned grid = static_cast<unsigned>((o.n + 8 * kGroups - 1) / (8 * kGroups));
  launch("int8_skinny", int8_skinny_kernel<kGroups, kWidth>, {grid, kThreads, 0, stream}, o, r);
}

}  // namespace

void launch_int8_skinny(const Int8Operands& o, const Int8Result& r, bool wide, cudaStream_t stream) {
  if (o.width == 1) return launch_kernel<1, 1>(o, r, stream);
  if (o.width == 4) return launch_kernel<1, 4>(o, r, stream);
  wide ? launch_kernel<4, 16>(o, r, stream) : launch_kernel<1, 16>(o, r, stream);
}

}  // namespace bigmodel
