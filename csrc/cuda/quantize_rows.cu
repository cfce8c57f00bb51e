// A warp or a block of eight takes a row: 16 bytes a thread and step, eight steps in registers, so a row of up to 1024
// (2048 in 16 bits) or 8192 (16384) elements is read once. What is longer is read twice, the second time from the L2
// cache; so are rows that are not aligned, element by element, if they are longer than a quarter of that.
#include "int8_launch.h"
#include "int8_quantize.cuh"
#include "launch.h"

namespace bigmodel {
namespace {

constexpr int kThreads = 256, kWarp = 32;

template <typename T, bool kVectors, int kGroup>
struct Steps {
  static constexpr int kSteps = kVectors ? 8 : 2, kStep = kGroup * Chunk<T>::kElements, kAtOnce = kSteps * kStep;
};

// kGroup threads to a row.
template <typename T, bool kVectors, int kGroup>
__global__ void __launch_bounds__(kThreads, 2) quantize_rows_kernel(RowsToQuantize rows, QuantizedRows to) {
  using S = Steps<T, kVectors, kGroup>;
  constexpr int kElements = Chunk<T>::kElements;
  const int lane = threadIdx.x % kGroup;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / kGroup) + threadIdx.x / kGroup;
  if (row >= rows.rows) return;  // whole warps: the row is the block's or the warp's
  const T* x = static_cast<const T*>(rows.x) + row * rows.k;
  const int parts = kGroup == kWarp ? 1 : (rows.k + S::kAtOnce - 1) / S::kAtOnce;
  Chunk<T> chunk[S::kSteps];
  uint32_t bits = 0;
  for (int part = 0; part < parts; ++part) {
#pragma unroll
    for (int s = 0; s < S::kSteps; ++s)
      chunk[s] = load_chunk(x, part * S::kAtOnce + s * S::kStep + lane * kElements, rows.k, kVectors);
#pragma unroll
    for (int s = 0; s < S::kSteps; ++s) bits = largest_magnitude(chunk[s], bits);
  }
  bits = __reduce_max_sync(0xffffffffu, bits);
  if constexpr (kGroup > kWarp) {
    BIGMODEL_SHARED(of_warp, uint32_t[kGroup / kWarp]);
    if (lane % kWarp == 0) of_warp[lane / kWarp] = bits;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < kGroup / kWarp; ++w) bits = max(bits, of_warp[w]);
  }
  const RowScale scale = row_scale(bits, rows.fixed);
  if (lane == 0) to.scale[row] = scale.scale;
  int8_t* q = to.q + row * to.stride;
  for (int part = 0; part < parts; ++part) {
#pragma unroll
    for (int s = 0; s < S::kSteps; ++s) {
      const int i = part * S::kAtOnce + s * S::kStep + lane * kElements;
      if (parts > 1) chunk[s] = load_chunk(x, i, rows.k, kVectors);
      if (kVectors) {
        if (i < rows.k) store_rounded(q + i, chunk[s], scale.inverse);
      } else {
#pragma unroll
        for (int j = 0; j < kElements; ++j)
          if (i + j < rows.k)
            q[i + j] = static_cast<int8_t>(rounded(chunk[s], j / 4 * 4, scale.inverse) >> (j % 4 * 8));
      }
    }
  }
}

template <typename T, bool kVectors>
void launch_group(const RowsToQuantize& rows, const QuantizedRows& to, cudaStream_t stream) {
  if (rows.k <= Steps<T, kVectors, kWarp>::kAtOnce) {
    const unsigned grid = static_cast<unsigned>((rows.rows + kThreads / kWarp - 1) / (kThreads / kWarp));
    launch("quantize_rows", quantize_rows_kernel<T, kVectors, kWarp>, {grid, kThreads, 0, stream}, rows, to);
  } else {
    const unsigned grid = static_cast<unsigned>(rows.rows);
    launch("quantize_rows", quantize_rows_kernel<T, kVectors, kThreads>, {grid, kThreads, 0, stream}, rows, to);
  }
}

template <typename T>
void launch_dtype(const RowsToQuantize& rows, const QuantizedRows& to, cudaStream_t stream) {
  const bool stores = reinterpret_cast<uintptr_t>(to.q) % 8 == 0 && to.stride % 8 == 0;
  rows.vectors&& stores ? launch_group<T, true>(rows, to, stream) : launch_group<T, false>(rows, to, stream);
}

}  // namespace

void launch_quantize_rows(const RowsToQuantize& rows, const QuantizedRows& to, cudaStream_t stream) {
  if (rows.rows == 0) return;
  if (rows.dtype == DType::f32) return launch_dtype<float>(rows, to, stream);
  if (rows.dtype == DType::bf16) return launch_dtype<Bf16>(rows, to, stream);
  launch_dtype<F16>(rows, to, stream);
}

}  // namespace bigmodel
