// The product in float32, on CUDA cores: tensor cores would round float32 to 11 bits. A lane has one output and kRows
// rows of activations; of every group of four inputs it reads the two that its index names, for four rows at a time. So
// shared memory, not arithmetic, is the limit (a 16-byte read for four multiply-adds): this pays where memory traffic
// counts, with few rows, and where float32 is wanted without the dense weight in memory.
//
// What is not stored is not multiplied: it sees no NaN.
#include "semi_sparse_launch.h"
#include "shared_tile.cuh"

namespace bigmodel {

namespace {

constexpr int kSemi = 32, kStored = 16;
constexpr int kThreads = 128, kWarps = kThreads / 32, kTiles = 2;  // warps take tile rows in turn, then rows

template <int kRows>  // of activations, to a warp
struct Columns {      // x, transposed
  static constexpr int kBlockRows = kRows * kWarps / kTiles;
  static constexpr int kStride = kBlockRows + 4;  // four inputs of a group lie in different banks
  float values[kSemi][kStride];
};

template <int kRows>
__device__ __forceinline__ void load_columns(const SemiArgs& a, int64_t first_row, int64_t first_input,
                                             Columns<kRows>& x) {
  constexpr int kPerRow = kSemi / 4, kItems = Columns<kRows>::kBlockRows * kPerRow;
  for (int i = static_cast<int>(threadIdx.x); i < kItems; i += kThreads) {
    const int row = i / kPerRow, input = i % kPerRow * 4;
    const int64_t m = first_row + row, k = first_input + input;
    float4 v = make_float4(0, 0, 0, 0);
    if (m < a.m && k < a.k) v = __ldg(reinterpret_cast<const float4*>(static_cast<const float*>(a.x) + m * a.k + k));
    x.values[input][row] = v.x;
    x.values[input + 1][row] = v.y;
    x.values[input + 2][row] = v.z;
    x.values[input + 3][row] = v.w;
  }
}

template <int kRows>
__global__ void __launch_bounds__(kThreads) semi_sparse_linear_f32_kernel(SemiArgs a) {
  BIGMODEL_SHARED(x, Columns<kRows>);
  const TileOrder order(static_cast<int>(blockIdx.x), a.row_blocks, a.output_blocks);
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int64_t tile = int64_t{order.column} * kTiles + warp % kTiles;
  const int64_t first_row = int64_t{order.row} * Columns<kRows>::kBlockRows;
  const int row = warp / kTiles * kRows;
  const bool inside = tile < a.tile_rows;

  float sums[kRows] = {};
  for (int64_t c = 0; c < a.tile_columns; ++c) {
    __syncthreads();  // nobody reads the columns before
    load_columns<kRows>(a, first_row, c * kSemi, x);
    const int64_t at = inside ? tile * a.tile_columns + c : 0;
    const float* values = static_cast<const float*>(a.values) + at * kSemi * kStored + lane;
    uint32_t positions = __ldg(reinterpret_cast<const uint32_t*>(a.index) + at * kSemi + lane);
    float weights[kStored];
#pragma unroll
    for (int s = 0; s < kStored; ++s) weights[s] = __ldg(values + s * kSemi);
    __syncthreads();
#pragma unroll
    for (int s = 0; s < kStored; ++s) {
      const float* column = &x.values[s / 2 * 4 + (positions & 3)][row];
      positions >>= 2;
#pragma unroll
      for (int r = 0; r < kRows; r += 4) {
        const float4 v = *reinterpret_cast<const float4*>(column + r);
        sums[r] = fmaf(v.x, weights[s], sums[r]);
        sums[r + 1] = fmaf(v.y, weights[s], sums[r + 1]);
        sums[r + 2] = fmaf(v.z, weights[s], sums[r + 2]);
        sums[r + 3] = fmaf(v.w, weights[s], sums[r + 3]);
      }
    }
  }

  const int64_t n = tile * kSemi + lane;
  if (n >= a.n) return;
  const float bias = a.bias ? __ldg(a.bias + n) : 0.0f;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t m = first_row + row + r;
    if (m < a.m) static_cast<float*>(a.out)[m * a.n + n] = sums[r] + bias;
  }
}

template <int kRows>
void launch_rows(SemiArgs args, cudaStream_t stream) {
  args.output_blocks = static_cast<int>(ceil_div(args.n, kTiles * kSemi));
  args.row_blocks = static_cast<int>(ceil_div(args.m, Columns<kRows>::kBlockRows));
  const unsigned blocks = static_cast<unsigned>(args.output_blocks) * static_cast<unsigned>(args.row_blocks);
  launch("semi_sparse_linear", semi_sparse_linear_f32_kernel<kRows>, {blocks, kThreads, 0, stream}, args);
}

}  // namespace

template <>
void launch_semi_sparse_linear<DType::f32>(const SemiArgs& args, SemiShape shape, int, cudaStream_t stream) {
  const bool few = shape == SemiShape::automatic ? args.m <= 8 : shape == SemiShape::few_rows;
  few ? launch_rows<4>(args, stream) : launch_rows<32>(args, stream);
}

}  // namespace bigmodel
