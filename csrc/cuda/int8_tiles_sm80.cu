// Any M: a block computes a tile of outputs by mma.sync. Tiles of both operands come to shared memory by cp.async,
// kStages - 1 steps of K ahead; ldmatrix takes them to registers. A row's 16-byte chunks lie permuted (offset_of), so
// that neither the copies nor ldmatrix meet in a bank. With several blocks to a tile (gridDim.y), each takes its share
// of K and stores its sums; sum_splits_kernel adds them up in order.
#include "int8_launch.h"
#include "int8_load.cuh"
#include "int8_result.cuh"
#include "launch.h"
#include "ptx_mma.h"

namespace bigmodel {
namespace {

constexpr int kWarp = 32, kRowsTogether = 8;  // rows of tiles that go over the columns side by side, for the L2 cache

template <Int8Tile kTile, int kWarpsM_, int kWarpsN_, int kStages_, int kBlocksPerSm_>
struct Shape {
  static constexpr TileSize kSize = kTileSizes[static_cast<int>(kTile)];
  static constexpr int kM = kSize.m, kN = kSize.n, kK = kSize.k, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_;
  static constexpr int kStages = kStages_, kBlocksPerSm = kBlocksPerSm_;
  static constexpr int kThreads = kWarpsM * kWarpsN * kWarp;
  static constexpr int kWarpM = kM / kWarpsM, kWarpN = kN / kWarpsN;       // a warp's part of the tile
  static constexpr int kChunks = kK / 16, kCopyRows = kThreads / kChunks;  // rows that the threads copy at a time
  static constexpr int kStage = (kM + kN) * kK;                            // bytes
  static constexpr int kPitch = kWarpN + 8;                                // of sums on their way out, in int32
  static constexpr int kShared = kStages * kStage;
  static_assert(kM % kCopyRows == 0 && kN % kCopyRows == 0, "Copies are whole rounds of all threads.");
  static_assert(kCopyRows % 8 == 0, "A thread's chunks all lie at the same permuted place in their rows.");
  static_assert(kWarpsM * kWarpsN * 16 * kPitch * 4 <= kShared, "The sums fit where the stages were.");
  static_assert(kWarpN % 16 == 0 && kWarpM % 16 == 0, "B is loaded 16 columns at a time.");
};

// Where a chunk lies in a tile: eight rows in a column of chunks, and the chunks of a row, are in different banks.
template <int kK>
__device__ __forceinline__ uint32_t offset_of(int row, int chunk) {
  static_assert(kK == 64 || kK == 128, "Two rows, or one, to the 128 bytes of all banks.");
  const int turned = chunk ^ (kK == 128 ? row % 8 : row / 2 % 4);
  return static_cast<uint32_t>(row * kK + turned * 16);
}

// A thread's part of copying kRows rows of an operand to shared memory, a step of K at a time: a chunk in every
// kCopyRows-th row. Zeros outside the operand.
template <typename S, int kRows, int kWidth>
struct TileCopy {
  const int8_t* from;  // in the step that is next
  int64_t apart;       // bytes from one of its rows to the next
  int left;            // bytes of K from the chunk on
  uint32_t inside;     // bits: which of its rows are the operand's
  uint32_t to;         // from the tile's start

  __device__ __forceinline__ TileCopy(const int8_t* p, int64_t stride, int first, int rows, int k0, int k) {
    const int row = threadIdx.x / S::kChunks, chunk = threadIdx.x % S::kChunks;
    from = p + (first + row) * stride + k0 + chunk * 16;
    apart = S::kCopyRows * stride;
    left = k - k0 - chunk * 16;
    to = offset_of<S::kK>(row, chunk);
    inside = 0;
#pragma unroll
    for (int i = 0; i < kRows / S::kCopyRows; ++i)
      inside |= static_cast<uint32_t>(first + row + i * S::kCopyRows < rows) << i;
  }

  __device__ __forceinline__ void next(uint32_t tile) {
    const int8_t* p = from;
#pragma unroll
    for (int i = 0; i < kRows / S::kCopyRows; ++i) {
      copy_bytes<kWidth>(tile + to + i * S::kCopyRows * S::kK, p, inside >> i & 1 ? left : 0);
      p += apart;
    }
    from += S::kK;
    left -= S::kK;
  }
};

// A warp's sums: rows 16 i + {g, g + 8}, columns 8 j + 2 t + {0, 1} of its part of the tile.
template <typename S>
using Sums = int32_t[S::kWarpM / 16][S::kWarpN / 8][4];

template <typename S>
__device__ __forceinline__ void multiply_stage(uint32_t stage, Sums<S>& sum) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int row_a = warp / S::kWarpsN * S::kWarpM + lane % 16;
  const int row_b = warp % S::kWarpsN * S::kWarpN + lane % 8 + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < S::kChunks; k += 2) {  // 32 bytes of K to an mma
    const uint32_t from_a = stage + offset_of<S::kK>(row_a, k + lane / 16);
    const uint32_t from_b = stage + S::kM * S::kK + offset_of<S::kK>(row_b, k + lane / 8 % 2);
    uint32_t a[S::kWarpM / 16][4];
#pragma unroll
    for (int i = 0; i < S::kWarpM / 16; ++i) ptx::load_matrix(a[i], from_a + i * 16 * S::kK);
#pragma unroll
    for (int j = 0; j < S::kWarpN / 8; j += 2) {
      uint32_t b[4];
      ptx::load_matrix(b, from_b + j * 8 * S::kK);
      const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
      for (int i = 0; i < S::kWarpM / 16; ++i) {
        ptx::mma_s8(sum[i][j], a[i], left);
        ptx::mma_s8(sum[i][j + 1], a[i], right);
      }
    }
  }
}

// A lane's sums of 16 rows to the warp's own piece of shared memory.
template <typename S>
__device__ __forceinline__ void stage_sums(const int32_t (&sum)[S::kWarpN / 8][4], int32_t* piece) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int j = 0; j < S::kWarpN / 8; ++j)
#pragma unroll
    for (int h = 0; h < 2; ++h)
      *reinterpret_cast<int2*>(piece + (lane / 4 + 8 * h) * S::kPitch + 8 * j + lane % 4 * 2) =
          make_int2(sum[j][2 * h], sum[j][2 * h + 1]);
}

// 16 rows at a time, through shared memory: there a lane finds four neighbours of a row, and a warp stores whole rows
// of its part.
template <typename S>
__device__ __forceinline__ void store_tile(const Int8Operands& o, const Int8Result& r, int m0, int n0,
                                           const Sums<S>& sum, int32_t* shared) {
  constexpr int kLanesOfRow = S::kWarpN / 4, kRowsAtOnce = kWarp / kLanesOfRow;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int32_t* piece = shared + warp * 16 * S::kPitch;
  const int column = lane % kLanesOfRow * 4, n = n0 + warp % S::kWarpsN * S::kWarpN + column;
  const Columns<4> columns = load_columns<4>(r, n, o.n);
#pragma unroll 1
  for (int i = 0; i < S::kWarpM / 16; ++i) {  // not unrolled: what follows the sums would be there several times
#pragma unroll
    for (int own = 0; own < S::kWarpM / 16; ++own)
      if (own == i) stage_sums<S>(sum[own], piece);
    __syncwarp();
#pragma unroll 1
    for (int row = lane / kLanesOfRow; row < 16; row += kRowsAtOnce) {
      const int m = m0 + warp / S::kWarpsN * S::kWarpM + 16 * i + row;
      if (m >= o.m) break;
      const int4 four = *reinterpret_cast<const int4*>(piece + row * S::kPitch + column);
      const int32_t sums[4] = {four.x, four.y, four.z, four.w};
      store_sums<4>(r, m, n, o.n, columns, x_scale_of(r, m), sums);
    }
    __syncwarp();
  }
}

struct TilePlace {
  int m, n;  // of its first row and column
};

template <typename S>
__device__ __forceinline__ TilePlace place_of(int tile, int m, int n) {
  const int rows = (m + S::kM - 1) / S::kM, columns = (n + S::kN - 1) / S::kN;
  const int first = tile / (kRowsTogether * columns) * kRowsTogether, rest = tile - first * columns;
  const int together = min(rows - first, kRowsTogether);
  return {(first + rest % together) * S::kM, rest / together * S::kN};
}

template <typename S, int kWidth>
__global__ void __launch_bounds__(S::kThreads, S::kBlocksPerSm)
    int8_tiles_kernel(Int8Operands o, Int8Result result, int steps_of_split) {
  const TilePlace at = place_of<S>(static_cast<int>(blockIdx.x), o.m, o.n);
  const int first = static_cast<int>(blockIdx.y) * steps_of_split;
  const int steps = min((o.k + S::kK - 1) / S::kK - first, steps_of_split);
  const uint32_t stages = ptx::shared_address(dynamic_shared<int8_t>());
  TileCopy<S, S::kM, kWidth> copy_a(o.a, o.a_stride, at.m, o.m, first * S::kK, o.k);
  TileCopy<S, S::kN, kWidth> copy_b(o.b, o.b_stride, at.n, o.n, first * S::kK, o.k);
  const auto copy_step = [&](int stage) {
    copy_a.next(stages + stage * S::kStage);
    copy_b.next(stages + stage * S::kStage + S::kM * S::kK);
  };
#pragma unroll
  for (int s = 0; s < S::kStages - 1; ++s) {
    if (s < steps) copy_step(s);
    ptx::commit_async();
  }
  Sums<S> sum = {};
  int now = 0, ahead = S::kStages - 1;
#pragma unroll 1
  for (int s = 0; s < steps; ++s) {
    ptx::wait_async<S::kStages - 2>();
    __syncthreads();  // everybody's copies of this step are there, and nobody reads the previous one's stage any more
    if (s + S::kStages - 1 < steps) copy_step(ahead);
    ptx::commit_async();
    multiply_stage<S>(stages + now * S::kStage, sum);
    now = now + 1 == S::kStages ? 0 : now + 1;
    ahead = ahead + 1 == S::kStages ? 0 : ahead + 1;
  }
  __syncthreads();  // the stages are free
  if (gridDim.y > 1) result.out = static_cast<int32_t*>(result.out) + static_cast<int64_t>(blockIdx.y) * o.m * o.n;
  store_tile<S>(o, result, at.m, at.n, sum, dynamic_shared<int32_t>());
}

constexpr int kSumThreads = 256;

__global__ void __launch_bounds__(kSumThreads)
    sum_splits_kernel(const int32_t* partial, int splits, int m, int n, Int8Result result) {
  const int vectors = (n + 3) / 4;
  const int64_t own = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x,
                outputs = static_cast<int64_t>(m) * n;
  const int row = static_cast<int>(own / vectors), column = static_cast<int>(own % vectors) * 4;
  if (row >= m) return;
  int32_t sum[4] = {};
  for (int s = 0; s < splits; ++s) {
    const int32_t* from = partial + s * outputs + static_cast<int64_t>(row) * n + column;
    if (n % 4 == 0) {
      const int4 part = __ldg(reinterpret_cast<const int4*>(from));
      sum[0] += part.x;
      sum[1] += part.y;
      sum[2] += part.z;
      sum[3] += part.w;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] += column + i < n ? from[i] : 0;
    }
  }
  store_sums<4>(result, row, column, n, load_columns<4>(result, column, n), x_scale_of(result, row), sum);
}

template <typename S, int kWidth>
void launch_shape(const Int8Operands& o, const Int8Result& r, int splits, cudaStream_t stream) {
  const int64_t tiles = int64_t{(o.m + S::kM - 1) / S::kM} * ((o.n + S::kN - 1) / S::kN);
  const int steps = (o.k + S::kK - 1) / S::kK, steps_of_split = (steps + splits - 1) / splits;
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(splits));
  launch("int8_tiles", int8_tiles_kernel<S, kWidth>, {grid, S::kThreads, S::kShared, stream}, o, r, steps_of_split);
}

using Small = Shape<Int8Tile::small, 2, 2, 4, 3>;
using Medium = Shape<Int8Tile::medium, 2, 4, 4, 2>;
using Large = Shape<Int8Tile::large, 2, 4, 4, 1>;

}  // namespace

// Rows that 16-byte copies can't fetch: the small tile for all of them.
void launch_int8_tiles(Int8Tile tile, const Int8Operands& o, const Int8Result& r, int splits, cudaStream_t stream) {
  if (o.width == 4) return launch_shape<Small, 4>(o, r, splits, stream);
  if (o.width == 1) return launch_shape<Small, 1>(o, r, splits, stream);
  if (tile == Int8Tile::small) return launch_shape<Small, 16>(o, r, splits, stream);
  if (tile == Int8Tile::medium) return launch_shape<Medium, 16>(o, r, splits, stream);
  launch_shape<Large, 16>(o, r, splits, stream);
}

void launch_int8_sum_splits(const int32_t* partial, int splits, int m, int n, const Int8Result& r,
                            cudaStream_t stream) {
  const int64_t vectors = int64_t{(n + 3) / 4} * m;
  const unsigned grid = static_cast<unsigned>((vectors + kSumThreads - 1) / kSumThreads);
  launch("int8_sum_splits", sum_splits_kernel, {grid, kSumThreads, 0, stream}, partial, splits, m, n, r);
}

}  // namespace bigmodel
