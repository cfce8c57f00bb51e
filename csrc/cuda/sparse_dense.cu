#include "launch.h"
#include "sparse_bits.h"

namespace bigmodel {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;

// A warp to a unit, a lane to four of its columns. kSpread: dense [N,K] from values; else values from dense.
template <typename Bits, bool kSpread>
__global__ void __launch_bounds__(kThreads) sparse_dense_kernel(SparseBits w, Bits* values, Bits* dense) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (index >= static_cast<int64_t>(w.n) * w.row_units) return;
  const int lane = threadIdx.x % 32, word = lane / 8, bit = lane % 8 * 4;
  const uint2 unit = __ldg(w.units + index);
  const uint32_t mask = __ldg(reinterpret_cast<const uint32_t*>(w.masks + index) + word);
  int64_t at = static_cast<int64_t>(unit.x) + before_word(unit.y, word) + __popc(mask & below(bit));
  const int column = static_cast<int>(index % w.row_units) * kUnit + 4 * lane;
  const int64_t to = index / w.row_units * w.k + column;
  Bits four[4] = {};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (!(mask >> (bit + j) & 1)) continue;
    if (kSpread)
      four[j] = values[at++];
    else
      values[at++] = dense[to + j];
  }
  if (!kSpread) return;
  if (w.k % 4 == 0) {
    if (column >= w.k) return;
    if constexpr (sizeof(Bits) == 4)
      *reinterpret_cast<uint4*>(dense + to) = make_uint4(four[0], four[1], four[2], four[3]);
    else
      *reinterpret_cast<uint2*>(dense + to) =
          make_uint2(four[0] | static_cast<uint32_t>(four[1]) << 16, four[2] | static_cast<uint32_t>(four[3]) << 16);
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (column + j < w.k) dense[to + j] = four[j];
}

template <typename Bits, bool kSpread>
void launch_dense(const SparseBits& w, void* values, void* dense, cudaStream_t stream) {
  const int64_t units = static_cast<int64_t>(w.n) * w.row_units;
  if (units == 0) return;
  const dim3 grid(static_cast<unsigned>((units + kWarps - 1) / kWarps));
  launch(kSpread ? "sparse_spread" : "sparse_gather", sparse_dense_kernel<Bits, kSpread>, {grid, kThreads, 0, stream},
         w, static_cast<Bits*>(values), static_cast<Bits*>(dense));
}

}  // namespace

void launch_sparse_dense(const SparseBits& w, void* values, void* dense, int bytes, bool spread, cudaStream_t stream) {
  if (bytes == 4)
    spread ? launch_dense<uint32_t, true>(w, values, dense, stream)
           : launch_dense<uint32_t, false>(w, values, dense, stream);
  else
    spread ? launch_dense<uint16_t, true>(w, values, dense, stream)
           : launch_dense<uint16_t, false>(w, values, dense, stream);
}

}  // namespace bigmodel
