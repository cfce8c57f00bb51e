#include <cstring>
#include <stdexcept>
#include <string>

#include "../../csrc/cuda/launch.h"
#include "../../csrc/cuda/ptx_async.h"
#include "../../csrc/cuda/ptx_mma.h"
#include "kernels.h"

using namespace bigmodel;

namespace {

__global__ void order_kernel(int* count, int* out) { out[threadIdx.x] = atomicAdd(count, 1); }

__global__ void reverse_kernel(const int* in, int* out) {
  int* shared = dynamic_shared<int>();
  shared[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

__global__ void reverse_twice_kernel(const int* in, int* out) {
  int* shared = dynamic_shared<int>();
  shared[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  const int v = shared[blockDim.x - 1 - threadIdx.x];
  __syncthreads();  // nothing is written behind it
  out[threadIdx.x] = v;
}

__global__ void rotate_kernel(int steps, const int* in, int* out) {
  int* shared = dynamic_shared<int>();
  int v = in[threadIdx.x];
  for (int i = 0; i < steps; ++i) {
    shared[threadIdx.x] = v;
    __syncthreads();
    v = shared[(threadIdx.x + 1) % blockDim.x];
    __syncthreads();
  }
  out[threadIdx.x] = v;
}

__global__ void rotate_in_warp_kernel(int steps, const int* in, int* out) {
  BIGMODEL_SHARED(shared, int[32]);
  int v = in[threadIdx.x];
  for (int i = 0; i < steps; ++i) {
    shared[threadIdx.x] = v;
    __syncwarp();
    v = shared[(threadIdx.x + 1) % 32];
    __syncwarp();
  }
  out[threadIdx.x] = v;
}

// Three stages of 64 threads x 16 bytes; every thread adds up what its neighbour of the other warp has copied.
__global__ void sum_stages_kernel(int tiles, const int4* in, int* out) {
  constexpr int kStages = 3, kThreads = 64;
  const int t = threadIdx.x;
  const uint32_t shared = ptx::shared_address(dynamic_shared<int4>());
  const auto copy = [&](int tile) {
    if (tile < tiles) ptx::copy_async_16(shared + (tile % kStages * kThreads + t) * 16, in + tile * kThreads + t);
    ptx::commit_async();
  };
  copy(0);
  copy(1);
  int sum = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    ptx::wait_async<1>();
    __syncthreads();
    copy(tile + 2);
    const uint4 v = ptx::load_shared_16(shared + (tile % kStages * kThreads + (t + 32) % kThreads) * 16);
    sum += static_cast<int>(v.x + v.y + v.z + v.w) * (tile + 1);
  }
  out[t] = sum;
}

// Warp 0 fills a buffer, warp 1 empties it: barrier 1 says "full", barrier 2 "empty".
__global__ void hand_over_kernel(int rounds, int* out) {
  int* shared = dynamic_shared<int>();
  const int lane = threadIdx.x % 32;
  if (threadIdx.x < 32) {
    for (int i = 0; i < rounds; ++i) {
      if (i) ptx::barrier_sync(2, 64);
      shared[lane] = i * 100 + lane;
      ptx::barrier_arrive(1, 64);
    }
  } else {
    for (int i = 0; i < rounds; ++i) {
      ptx::barrier_sync(1, 64);
      out[i * 32 + lane] = shared[31 - lane];
      if (i + 1 < rounds) ptx::barrier_arrive(2, 64);
    }
  }
}

__global__ void early_return_kernel(int* out) {
  BIGMODEL_SHARED(count, int);
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  if (threadIdx.x % 3 == 0) return;
  atomicAdd(&count, 1);
  __syncthreads();
  out[threadIdx.x] = count;
}

__global__ void collectives_kernel(int* out) {
  const unsigned all = 0xffffffffu;
  const int lane = threadIdx.x;
  int* mine = out + lane * 12;
  mine[0] = __shfl_sync(all, lane * 3, 5);
  mine[1] = __shfl_sync(all, lane * 3, 9, 8);
  mine[2] = __shfl_xor_sync(all, lane, 3);
  mine[3] = __shfl_down_sync(all, lane, 4);
  mine[4] = __shfl_up_sync(all, lane, 4, 16);
  mine[5] = static_cast<int>(__ballot_sync(all, lane % 5 == 0));
  mine[6] = __any_sync(all, lane == 40) + 2 * __all_sync(all, lane < 32);
  mine[7] = __reduce_max_sync(all, -lane);
  mine[8] = static_cast<int>(__reduce_add_sync(all, static_cast<unsigned>(lane)));
  mine[9] = lane < 16 ? __shfl_sync(0xffffu, lane, 15 - lane) : __shfl_sync(0xffff0000u, lane, 16);
  mine[10] = static_cast<int>(__match_any_sync(all, lane / 8));
  mine[11] = __syncthreads_count(lane < 7) + 100 * __syncthreads_or(lane == 3) + 1000 * __syncthreads_and(lane == 3);
}

__global__ void conflicts_kernel(int stride) {
  char* shared = dynamic_shared<char>();
  for (int i = threadIdx.x; i < 32 * stride / 4; i += 32) reinterpret_cast<int*>(shared)[i] = i;
  __syncthreads();
  uint32_t r[4];
  const uint32_t row = ptx::shared_address(shared) + threadIdx.x * stride;
  ptx::load_matrix(r, row);
  ptx::store_shared_16(row, {1, 2, 3, 4});
  for (int i = 0; i < 3; ++i) ptx::load_shared_16(row - threadIdx.x % 2 * stride);  // pairs of lanes read the same
}

__global__ void divergent_barrier_kernel() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}

__global__ void deadlock_kernel() {
  if (threadIdx.x < 32) ptx::barrier_sync(3, 64);
}

__global__ void part_of_a_warp_kernel() {
  if (threadIdx.x % 2) ptx::barrier_sync(3, 32);
}

__global__ void divergent_lanes_kernel() {
  if (threadIdx.x < 16)
    __shfl_sync(0xffffffffu, 1, 0);
  else
    __shfl_sync(0xffffffffu, 1, 0);
}

__global__ void absent_lane_kernel() { __shfl_sync(0xffffu, 1, 20); }

__global__ void returned_lane_kernel() {
  if (threadIdx.x == 7) return;
  __syncwarp();
}

__global__ void poison_kernel() { ptx::load_shared_16(ptx::shared_address(dynamic_shared<char>())); }

__global__ void waits_too_little_kernel() {
  const uint32_t shared = ptx::shared_address(dynamic_shared<char>());
  alignas(16) static const int source[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  ptx::copy_async_16(shared, source);
  ptx::commit_async();
  ptx::copy_async_16(shared + 16, source + 4);
  ptx::commit_async();
  ptx::wait_async<1>();
  ptx::load_shared_16(shared);
  ptx::load_shared_16(shared + 16);
}

__global__ void beyond_kernel() {
  const uint32_t shared = ptx::shared_address(dynamic_shared<char>());
  if (threadIdx.x == 5) ptx::store_shared_16(shared + 1024, {});
}

__global__ void silently_beyond_kernel() { dynamic_shared<char>()[1024 + threadIdx.x] = 1; }

__global__ void misaligned_kernel() { ptx::store_shared_16(ptx::shared_address(dynamic_shared<char>() + 8), {}); }

__global__ void twice_kernel() {
  ptx::barrier_arrive(4, 64);
  ptx::barrier_arrive(4, 64);
}

__global__ void disorder_kernel() {
  int32_t d[4] = {};
  uint32_t a[4] = {}, b[4] = {};
  ptx::mma_sparse_s8(d, a, b, threadIdx.x == 9 ? 0x44444441u : 0x44444444u);
}

}  // namespace

void order(int threads, int* count, int* out) {
  launch("order", order_kernel, {1u, static_cast<unsigned>(threads)}, count, out);
}
void reverse(int threads, const int* in, int* out) {
  launch("reverse", reverse_kernel, {1u, static_cast<unsigned>(threads), sizeof(int) * static_cast<size_t>(threads)},
         in, out);
}
void reverse_twice(int threads, const int* in, int* out) {
  launch("reverse_twice", reverse_twice_kernel,
         {1u, static_cast<unsigned>(threads), sizeof(int) * static_cast<size_t>(threads)}, in, out);
}
void rotate(int threads, int steps, const int* in, int* out) {
  launch("rotate", rotate_kernel, {1u, static_cast<unsigned>(threads), sizeof(int) * static_cast<size_t>(threads)},
         steps, in, out);
}
void rotate_in_warp(int steps, const int* in, int* out) {
  launch("rotate_in_warp", rotate_in_warp_kernel, {1u, 32u}, steps, in, out);
}
void sum_stages(int tiles, const int* in, int* out) {
  launch("sum_stages", sum_stages_kernel, {1u, 64u, 3 * 64 * 16}, tiles, reinterpret_cast<const int4*>(in), out);
}
void hand_over(int rounds, int* out) { launch("hand_over", hand_over_kernel, {1u, 64u, 128}, rounds, out); }
void early_return(int threads, int* out) {
  launch("early_return", early_return_kernel, {1u, static_cast<unsigned>(threads)}, out);
}
void collectives(int* out) { launch("collectives", collectives_kernel, {1u, 32u}, out); }
void count_conflicts(int stride) {
  launch("count_conflicts", conflicts_kernel, {1u, 32u, 32 * static_cast<size_t>(stride)}, stride);
}

void wrong(const char* what) {
  static const struct {
    const char* name;
    void (*kernel)();
    unsigned threads;
  } kernels[] = {{"divergent_barrier", divergent_barrier_kernel, 64},
                 {"deadlock", deadlock_kernel, 64},
                 {"part_of_a_warp", part_of_a_warp_kernel, 64},
                 {"divergent_lanes", divergent_lanes_kernel, 32},
                 {"absent_lane", absent_lane_kernel, 16},
                 {"returned_lane", returned_lane_kernel, 32},
                 {"poison", poison_kernel, 32},
                 {"waits_too_little", waits_too_little_kernel, 1},
                 {"beyond", beyond_kernel, 32},
                 {"silently_beyond", silently_beyond_kernel, 32},
                 {"misaligned", misaligned_kernel, 32},
                 {"twice", twice_kernel, 32},
                 {"disorder", disorder_kernel, 32}};
  for (const auto& k : kernels)
    if (!std::strcmp(k.name, what)) return launch(k.name, k.kernel, {1u, k.threads, 1024});
  throw std::invalid_argument(std::string("there is no kernel ") + what);
}
