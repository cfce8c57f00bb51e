// sums[c] = sum over s of slabs[s][c], always in the same order: eight threads to a column take every eighth slab, then
// the first adds what the eight have.
#include "fused_dropout_norm_launch.h"
#include "launch.h"

namespace bigmodel {
namespace {

constexpr int kColumns = 32, kParts = 8;

__global__ void __launch_bounds__(kColumns* kParts)
    sum_slabs_kernel(const float* __restrict__ slabs, int64_t count, int64_t columns, float* __restrict__ sums) {
  BIGMODEL_SHARED(parts, float[kParts][kColumns]);
  const int part = threadIdx.x / kColumns, lane = threadIdx.x % kColumns;
  const int64_t column = int64_t{blockIdx.x} * kColumns + lane;
  float sum = 0.0f;
  if (column < columns)
#pragma unroll 4
    for (int64_t s = part; s < count; s += kParts) sum += slabs[s * columns + column];
  parts[part][lane] = sum;
  __syncthreads();
  if (part != 0 || column >= columns) return;
  sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kParts; ++i) sum += parts[i][lane];
  sums[column] = sum;
}

}  // namespace

void launch_sum_slabs(const float* slabs, int64_t count, int64_t columns, float* sums, cudaStream_t stream) {
  launch("sum_slabs", sum_slabs_kernel,
         {static_cast<unsigned>((columns + kColumns - 1) / kColumns), kColumns * kParts, 0, stream}, slabs, count,
         columns, sums);
}

}  // namespace bigmodel
