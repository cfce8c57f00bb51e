#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../../csrc/cuda/launch.h"
#include "../../csrc/cuda/ptx_tma.h"
#include "../../csrc/cuda/ptx_wgmma.h"
#include "kernels.h"

using namespace bigmodel;

namespace {

constexpr int kBarrierBytes = 1024;  // at the start of shared memory, for mbarriers

TensorMap map_of(const TensorBox& b) {
  const TensorSwizzle swizzle = b.swizzle == 128  ? TensorSwizzle::bytes_128
                                : b.swizzle == 64 ? TensorSwizzle::bytes_64
                                : b.swizzle == 32 ? TensorSwizzle::bytes_32
                                                  : TensorSwizzle::none;
  const int64_t row = b.sizes[0] * 4;
  if (b.rank == 2)
    return make_tensor_map(TensorElement::s32, b.address, {b.sizes[0], b.sizes[1]}, {row}, {b.box[0], b.box[1]},
                           swizzle);
  return make_tensor_map(TensorElement::s32, b.address, {b.sizes[0], b.sizes[1], b.sizes[2]}, {row, row * b.sizes[1]},
                         {b.box[0], b.box[1], b.box[2]}, swizzle);
}

__global__ void load_box_kernel(const __grid_constant__ TensorMap map, int rank, int x, int y, int z, int words,
                                int* out) {
  const int* shared = dynamic_shared<int>() + kBarrierBytes / 4;
  const uint32_t start = ptx::shared_address(dynamic_shared<int>());
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(start, 1);
    ptx::fence_mbarrier_init();
    ptx::mbarrier_arrive_expect(start, words * 4);
    rank == 2 ? ptx::tensor_load(start + kBarrierBytes, map, x, y, start)
              : ptx::tensor_load(start + kBarrierBytes, map, x, y, z, start);
  }
  __syncthreads();
  ptx::mbarrier_wait(start, 0);
  for (int i = threadIdx.x; i < words; i += 32) out[i] = shared[i];
}

__global__ void store_box_kernel(const __grid_constant__ TensorMap map, int rank, int x, int y, int z, int words,
                                 const int* in) {
  int* shared = dynamic_shared<int>();
  for (int i = threadIdx.x; i < words; i += 32) shared[i] = in[i];
  ptx::fence_async_proxy();
  __syncthreads();
  const uint32_t from = ptx::shared_address(shared);
  if (threadIdx.x == 0) {
    rank == 2 ? ptx::tensor_store(map, x, y, from) : ptx::tensor_store(map, x, y, z, from);
    ptx::commit_stores();
    ptx::wait_stores<0>();
  }
}

// A producer warp loads tiles of 32 int32 into two stages, a consumer warp adds them up.
__global__ void sum_tiles_kernel(const __grid_constant__ TensorMap map, int tiles, int* out) {
  constexpr int kStages = 2, kBytes = 128;
  const uint32_t full = ptx::shared_address(dynamic_shared<char>()), empty = full + 8 * kStages;
  const int* stages = dynamic_shared<int>() + kBarrierBytes / 4;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      ptx::mbarrier_init(full + 8 * s, 1);
      ptx::mbarrier_init(empty + 8 * s, 32);
    }
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    if (!ptx::elect_one()) return;
    for (int i = 0; i < tiles; ++i) {
      const int s = i % kStages;
      ptx::mbarrier_wait(empty + 8 * s, i / kStages % 2 ^ 1);
      ptx::mbarrier_arrive_expect(full + 8 * s, kBytes);
      ptx::tensor_load(full + kBarrierBytes + s * kBytes, map, 0, i, full + 8 * s);
    }
  } else {
    const int lane = threadIdx.x % 32;
    int sum = 0;
    for (int i = 0; i < tiles; ++i) {
      const int s = i % kStages;
      ptx::mbarrier_wait(full + 8 * s, i / kStages % 2);
      sum += stages[s * 32 + lane] * (i + 1);
      ptx::mbarrier_arrive(empty + 8 * s);
    }
    out[lane] = sum;
  }
}

// out [64, 64] = a [64, K] b [64, K]^T, K = 128 bytes x tiles: a warpgroup multiplies, a fifth warp loads.
template <typename T>
__global__ void product_kernel(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                               const __grid_constant__ TensorMap out, int tiles) {
  constexpr bool kInteger = std::is_same_v<T, int32_t>;
  constexpr int kStages = 3, kRow = 128, kOperand = 64 * kRow, kStage = 2 * kOperand;
  constexpr int kStep = kInteger ? kRow : kRow / 2;  // elements
  const uint32_t full = ptx::shared_address(dynamic_shared<char>()), empty = full + 8 * kStages;
  const uint32_t stages = full + kBarrierBytes, result = stages + kStages * kStage;
  if (threadIdx.x == 128) {
    for (int s = 0; s < kStages; ++s) {
      ptx::mbarrier_init(full + 8 * s, 1);
      ptx::mbarrier_init(empty + 8 * s, 128);
    }
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x >= 128) {
    if (!ptx::elect_one()) return;
    for (int i = 0; i < tiles; ++i) {
      const int s = i % kStages;
      ptx::mbarrier_wait(empty + 8 * s, i / kStages % 2 ^ 1);
      ptx::mbarrier_arrive_expect(full + 8 * s, kStage);
      ptx::tensor_load(stages + s * kStage, a, i * kStep, 0, full + 8 * s);
      ptx::tensor_load(stages + s * kStage + kOperand, b, i * kStep, 0, full + 8 * s);
    }
    return;
  }
  T d[32] = {};
  for (int i = 0; i < tiles; ++i) {
    const int s = i % kStages;
    ptx::mbarrier_wait(full + 8 * s, i / kStages % 2);
    ptx::wgmma_fence();
    for (int k = 0; k < kRow; k += 32) {
      const uint64_t da = ptx::matrix_descriptor(stages + s * kStage + k, TensorSwizzle::bytes_128, 8 * kRow);
      const uint64_t db =
          ptx::matrix_descriptor(stages + s * kStage + kOperand + k, TensorSwizzle::bytes_128, 8 * kRow);
      if constexpr (kInteger)
        ptx::wgmma_s8(d, da, db, true);
      else
        ptx::wgmma_bf16(d, da, db, true);
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<1>();  // the group before this one
    ptx::wgmma_hold(d);
    if (i > 0) ptx::mbarrier_arrive(empty + 8 * ((i - 1) % kStages));
  }
  ptx::wgmma_wait<0>();
  ptx::wgmma_hold(d);
  T* rows = reinterpret_cast<T*>(dynamic_shared<char>() + (result - full));
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
  for (int i = 0; i < 32; ++i) rows[(row + i / 2 % 2 * 8) * 64 + i / 4 * 8 + column + i % 2] = d[i];
  ptx::fence_async_proxy();
  ptx::barrier_sync(1, 128);
  if (threadIdx.x == 0) {
    ptx::tensor_store(out, 0, 0, result);
    ptx::commit_stores();
    ptx::wait_stores<0>();
  }
}

template <typename T>
void product(TensorElement operand, TensorElement result, int tiles, const void* a, const void* b, void* out) {
  const int64_t row = int64_t{128} * tiles, step = operand == TensorElement::s8 ? 128 : 64;
  const auto operand_map = [&](const void* p) {
    return make_tensor_map(operand, p, {step * tiles, 64}, {row}, {static_cast<int>(step), 64},
                           TensorSwizzle::bytes_128);
  };
  const TensorMap out_map = make_tensor_map(result, out, {64, 64}, {256}, {64, 64}, TensorSwizzle::none);
  launch("product", product_kernel<T>, {1u, 160u, kBarrierBytes + 3 * 16384 + 16384}, operand_map(a), operand_map(b),
         out_map, tiles);
}

// An accumulator before the wait and behind it, of operands that are all 1.
__global__ void peek_kernel(int* before, int* after) {
  int* shared = dynamic_shared<int>();
  for (int i = threadIdx.x; i < 4096; i += 128) shared[i] = 0x01010101;
  ptx::fence_async_proxy();
  __syncthreads();
  const uint64_t descriptor = ptx::matrix_descriptor(ptx::shared_address(shared), TensorSwizzle::bytes_32, 256);
  int32_t d[32] = {};
  ptx::wgmma_fence();
  ptx::wgmma_s8(d, descriptor, descriptor, true);
  ptx::wgmma_commit();
  before[threadIdx.x] = d[5];
  ptx::wgmma_wait<0>();
  after[threadIdx.x] = d[5];
}

// Mistakes: `map` is of 32 x 8 int32 without swizzle.
__global__ void unfenced_store_kernel(const __grid_constant__ TensorMap map) {
  int* shared = dynamic_shared<int>();
  shared[threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x == 0) ptx::tensor_store(map, 0, 0, ptx::shared_address(shared));
}

__global__ void no_wait_for_store_kernel(const __grid_constant__ TensorMap map) {
  if (threadIdx.x == 0) ptx::tensor_store(map, 0, 0, ptx::shared_address(dynamic_shared<int>()));
}

__global__ void waits_for_one_store_kernel(const __grid_constant__ TensorMap map) {
  const uint32_t from = ptx::shared_address(dynamic_shared<int>());
  for (int i = 0; i < 2; ++i) {
    ptx::tensor_store(map, 0, 0, from);
    ptx::commit_stores();
  }
  ptx::wait_stores<1>();
}

__global__ void unknown_mbarrier_kernel(const __grid_constant__ TensorMap map) {
  const uint32_t start = ptx::shared_address(dynamic_shared<int>());
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(start, 1);
    ptx::tensor_load(start + 1024, map, 0, 0, start);
  }
}

__global__ void no_mbarrier_kernel(const __grid_constant__ TensorMap) {
  ptx::mbarrier_arrive(ptx::shared_address(dynamic_shared<int>()));
}

__global__ void overwritten_mbarrier_kernel(const __grid_constant__ TensorMap) {
  const uint32_t start = ptx::shared_address(dynamic_shared<int>());
  if (threadIdx.x == 0) ptx::mbarrier_init(start, 32);
  __syncthreads();
  dynamic_shared<int>()[0] = 5;
  ptx::mbarrier_arrive(start);
}

__global__ void wrong_bytes_kernel(const __grid_constant__ TensorMap map) {
  const uint32_t start = ptx::shared_address(dynamic_shared<int>());
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(start, 1);
    ptx::fence_mbarrier_init();
    ptx::mbarrier_arrive_expect(start, 1000);
    ptx::tensor_load(start + 1024, map, 0, 0, start);
  }
  __syncthreads();
  ptx::mbarrier_wait(start, 0);
}

__global__ void reads_before_wait_kernel(const __grid_constant__ TensorMap map) {
  const uint32_t start = ptx::shared_address(dynamic_shared<int>());
  ptx::mbarrier_init(start, 1);
  ptx::fence_mbarrier_init();
  ptx::mbarrier_arrive_expect(start, 1024);
  ptx::tensor_load(start + 1024, map, 0, 0, start);
  ptx::load_shared_16(start + 1024);
}

__global__ void misplaced_load_kernel(const __grid_constant__ TensorMap map) {
  const uint32_t start = ptx::shared_address(dynamic_shared<int>());
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(start, 1);
    ptx::fence_mbarrier_init();
    ptx::tensor_load(start + 1040, map, 0, 0, start);
  }
}

template <bool kFence, bool kSame, bool kPublish>
__global__ void wgmma_mistake_kernel(const __grid_constant__ TensorMap) {
  int* shared = dynamic_shared<int>();
  for (int i = threadIdx.x; i < 4096; i += 128) shared[i] = 0;
  if (kPublish) ptx::fence_async_proxy();
  __syncthreads();
  const uint32_t start = ptx::shared_address(shared) + (!kSame && threadIdx.x >= 64 ? 2048u : 0u);
  const uint64_t descriptor = ptx::matrix_descriptor(start, TensorSwizzle::bytes_32, 256);
  int32_t d[32] = {};
  if (kFence) ptx::wgmma_fence();
  ptx::wgmma_s8(d, descriptor, descriptor, true);
}

__global__ void one_wgmma_fence_kernel(const __grid_constant__ TensorMap) {
  int* shared = dynamic_shared<int>();
  for (int i = threadIdx.x; i < 4096; i += 128) shared[i] = 0;
  ptx::fence_async_proxy();
  __syncthreads();
  const uint64_t descriptor = ptx::matrix_descriptor(ptx::shared_address(shared), TensorSwizzle::bytes_32, 256);
  int32_t d[32] = {};
  ptx::wgmma_fence();
  for (int i = 0; i < 2; ++i) {
    ptx::wgmma_s8(d, descriptor, descriptor, true);
    ptx::wgmma_commit();
  }
}

}  // namespace

void load_box(const TensorBox& b, int* out) {
  const int words = b.box[0] * b.box[1] * b.box[2];
  launch("load_box", load_box_kernel, {1u, 32u, kBarrierBytes + 4 * static_cast<size_t>(words)}, map_of(b), b.rank,
         b.at[0], b.at[1], b.at[2], words, out);
}
void store_box(const TensorBox& b, const int* in) {
  const int words = b.box[0] * b.box[1] * b.box[2];
  launch("store_box", store_box_kernel, {1u, 32u, 4 * static_cast<size_t>(words)}, map_of(b), b.rank, b.at[0], b.at[1],
         b.at[2], words, in);
}
void sum_tiles(int tiles, const int* in, int* out) {
  const TensorMap map = make_tensor_map(TensorElement::s32, in, {32, tiles}, {128}, {32, 1}, TensorSwizzle::none);
  launch("sum_tiles", sum_tiles_kernel, {1u, 64u, kBarrierBytes + 256}, map, tiles, out);
}
void product_s8(int tiles, const void* a, const void* b, void* out) {
  product<int32_t>(TensorElement::s8, TensorElement::s32, tiles, a, b, out);
}
void product_bf16(int tiles, const void* a, const void* b, void* out) {
  product<float>(TensorElement::bf16, TensorElement::f32, tiles, a, b, out);
}

void peek(int* before, int* after) { launch("peek", peek_kernel, {1u, 128u, 16384}, before, after); }

void wrong_on_sm90(const char* what) {
  static const struct {
    const char* name;
    void (*kernel)(TensorMap);
    unsigned threads;
  } kernels[] = {{"unfenced_store", unfenced_store_kernel, 32},
                 {"no_wait_for_store", no_wait_for_store_kernel, 32},
                 {"waits_for_one_store", waits_for_one_store_kernel, 1},
                 {"unknown_mbarrier", unknown_mbarrier_kernel, 32},
                 {"no_mbarrier", no_mbarrier_kernel, 32},
                 {"overwritten_mbarrier", overwritten_mbarrier_kernel, 32},
                 {"wrong_bytes", wrong_bytes_kernel, 32},
                 {"reads_before_wait", reads_before_wait_kernel, 1},
                 {"misplaced_load", misplaced_load_kernel, 32},
                 {"no_wgmma_fence", wgmma_mistake_kernel<false, true, true>, 128},
                 {"one_wgmma_fence", one_wgmma_fence_kernel, 128},
                 {"different_products", wgmma_mistake_kernel<true, false, true>, 128},
                 {"unpublished_operands", wgmma_mistake_kernel<true, true, false>, 128}};
  alignas(16) static int tensor[32 * 8];
  const TensorMap map = make_tensor_map(TensorElement::s32, tensor, {32, 8}, {128}, {32, 8}, TensorSwizzle::none);
  for (const auto& k : kernels)
    if (!std::strcmp(k.name, what)) return launch(k.name, k.kernel, {1u, k.threads, 20480}, map);
  throw std::invalid_argument(std::string("there is no kernel ") + what);
}
