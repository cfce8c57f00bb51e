#include "fragments.h"
#include "launch.h"
#include "ptx_mma.h"
#include "ptx_tma.h"
#include "ptx_wgmma.h"

namespace bigmodel {

namespace {

template <MmaKind kKind>
__global__ void mma_kernel(const uint32_t* a_lanes, const uint32_t* b_lanes, const uint32_t* metadata,
                           uint32_t* d_lanes) {
  constexpr bool kSparse = kKind >= MmaKind::sparse_s8;
  constexpr bool kInteger = kKind == MmaKind::s8 || kKind == MmaKind::sparse_s8;
  constexpr int kB = kSparse ? 4 : 2;
  const int lane = threadIdx.x;
  uint32_t a[4], b[kB], e = 0;
  for (int i = 0; i < 4; ++i) a[i] = a_lanes[lane * 4 + i];
  for (int i = 0; i < kB; ++i) b[i] = b_lanes[lane * kB + i];
  if constexpr (kSparse) e = metadata[lane];
  if constexpr (kInteger) {
    int32_t d[4];
    for (int i = 0; i < 4; ++i) d[i] = static_cast<int32_t>(d_lanes[lane * 4 + i]);
    if constexpr (kKind == MmaKind::s8) ptx::mma_s8(d, a, b);
    if constexpr (kKind == MmaKind::sparse_s8) ptx::mma_sparse_s8(d, a, b, e);
    for (int i = 0; i < 4; ++i) d_lanes[lane * 4 + i] = static_cast<uint32_t>(d[i]);
  } else {
    float d[4];
    for (int i = 0; i < 4; ++i) d[i] = __uint_as_float(d_lanes[lane * 4 + i]);
    if constexpr (kKind == MmaKind::bf16) ptx::mma_bf16(d, a, b);
    if constexpr (kKind == MmaKind::f16) ptx::mma_f16(d, a, b);
    if constexpr (kKind == MmaKind::sparse_bf16_0) ptx::mma_sparse_bf16<0>(d, a, b, e);
    if constexpr (kKind == MmaKind::sparse_bf16_1) ptx::mma_sparse_bf16<1>(d, a, b, e);
    if constexpr (kKind == MmaKind::sparse_f16_0) ptx::mma_sparse_f16<0>(d, a, b, e);
    if constexpr (kKind == MmaKind::sparse_f16_1) ptx::mma_sparse_f16<1>(d, a, b, e);
    for (int i = 0; i < 4; ++i) d_lanes[lane * 4 + i] = __float_as_uint(d[i]);
  }
}

template <int kMatrices, bool kTransposed>
__global__ void load_matrix_kernel(const uint4* image, const uint32_t* offsets, uint32_t* r_lanes) {
  uint4* shared = dynamic_shared<uint4>();
  for (int i = threadIdx.x; i < kFragmentImage / 16; i += 32) shared[i] = image[i];
  __syncthreads();
  uint32_t r[kMatrices];
  const uint32_t row = ptx::shared_address(shared) + offsets[threadIdx.x];
  if constexpr (kTransposed)
    ptx::load_matrix_transposed(r, row);
  else
    ptx::load_matrix(r, row);
  for (int i = 0; i < kMatrices; ++i) r_lanes[threadIdx.x * kMatrices + i] = r[i];
}

template <MmaKind kKind>
__global__ void wgmma_kernel(TensorSwizzle swizzle, int stride, int leading, int inside, const uint4* image,
                             uint32_t* d_threads) {
#if defined(BIGMODEL_SM90A)
  constexpr bool kInteger = kKind == MmaKind::s8;
  uint4* shared = dynamic_shared<uint4>();
  for (int i = threadIdx.x; i < kWgmmaImage / 16; i += 128) shared[i] = image[i];
  ptx::fence_async_proxy();
  __syncthreads();
  const uint32_t start = ptx::shared_address(shared) + inside;
  const uint64_t a = ptx::matrix_descriptor(start, swizzle, stride, leading);
  const uint64_t b = ptx::matrix_descriptor(start + kWgmmaImage / 2, swizzle, stride, leading);
  std::conditional_t<kInteger, int32_t, float> d[32] = {};
  ptx::wgmma_fence();
  if constexpr (kKind == MmaKind::s8) ptx::wgmma_s8(d, a, b, false);
  if constexpr (kKind == MmaKind::bf16) ptx::wgmma_bf16(d, a, b, false);
  if constexpr (kKind == MmaKind::f16) ptx::wgmma_f16(d, a, b, false);
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  ptx::wgmma_hold(d);
  for (int i = 0; i < 32; ++i) {
    if constexpr (kInteger)
      d_threads[threadIdx.x * 32 + i] = static_cast<uint32_t>(d[i]);
    else
      d_threads[threadIdx.x * 32 + i] = __float_as_uint(d[i]);
  }
#endif
}

}  // namespace

void mma_fragments(MmaKind kind, const uint32_t* a, const uint32_t* b, const uint32_t* metadata, uint32_t* d,
                   int device, void* stream) {
  const DeviceGuard guard(device);
  const auto run = [&](void (*kernel)(const uint32_t*, const uint32_t*, const uint32_t*, uint32_t*)) {
    launch("mma_fragments", kernel, {1u, 32u, 0, static_cast<cudaStream_t>(stream)}, a, b, metadata, d);
  };
  switch (kind) {
    case MmaKind::s8:
      return run(mma_kernel<MmaKind::s8>);
    case MmaKind::bf16:
      return run(mma_kernel<MmaKind::bf16>);
    case MmaKind::f16:
      return run(mma_kernel<MmaKind::f16>);
    case MmaKind::sparse_s8:
      return run(mma_kernel<MmaKind::sparse_s8>);
    case MmaKind::sparse_bf16_0:
      return run(mma_kernel<MmaKind::sparse_bf16_0>);
    case MmaKind::sparse_bf16_1:
      return run(mma_kernel<MmaKind::sparse_bf16_1>);
    case MmaKind::sparse_f16_0:
      return run(mma_kernel<MmaKind::sparse_f16_0>);
    case MmaKind::sparse_f16_1:
      return run(mma_kernel<MmaKind::sparse_f16_1>);
  }
}

void load_matrix_fragments(int matrices, bool transposed, const void* image, const uint32_t* offsets, uint32_t* r,
                           int device, void* stream) {
  const DeviceGuard guard(device);
  const auto run = [&](void (*kernel)(const uint4*, const uint32_t*, uint32_t*)) {
    launch("load_matrix_fragments", kernel, {1u, 32u, kFragmentImage, static_cast<cudaStream_t>(stream)},
           static_cast<const uint4*>(image), offsets, r);
  };
  if (matrices == 1) return run(transposed ? load_matrix_kernel<1, true> : load_matrix_kernel<1, false>);
  if (matrices == 2) return run(transposed ? load_matrix_kernel<2, true> : load_matrix_kernel<2, false>);
  run(transposed ? load_matrix_kernel<4, true> : load_matrix_kernel<4, false>);
}

void wgmma_fragments(MmaKind kind, int swizzle_bytes, int stride, int leading, int inside, const void* image,
                     uint32_t* d, int device, void* stream) {
  const DeviceGuard guard(device);
  const TensorSwizzle swizzle = swizzle_bytes == 128  ? TensorSwizzle::bytes_128
                                : swizzle_bytes == 64 ? TensorSwizzle::bytes_64
                                : swizzle_bytes == 32 ? TensorSwizzle::bytes_32
                                                      : TensorSwizzle::none;
  const auto run = [&](void (*kernel)(TensorSwizzle, int, int, int, const uint4*, uint32_t*)) {
    launch("wgmma_fragments", kernel, {1u, 128u, kWgmmaImage, static_cast<cudaStream_t>(stream)}, swizzle, stride,
           leading, inside, static_cast<const uint4*>(image), d);
  };
  if (kind == MmaKind::s8) return run(wgmma_kernel<MmaKind::s8>);
  if (kind == MmaKind::bf16) return run(wgmma_kernel<MmaKind::bf16>);
  run(wgmma_kernel<MmaKind::f16>);
}

}  // namespace bigmodel
