// Any M on compute capability 9.0, by wgmma. Blocks are persistent: one to a multiprocessor, each takes every
// gridDim.x-th tile. A thread of the first warpgroup copies tiles of both operands by TMA, up to kStages steps of K
// ahead, also into the next tile; the other two warpgroups multiply, 64 rows each. Per stage two mbarriers: `full` is
// passed when the bytes are there, `empty` when all warps have read them.
//
// kSwapped: the weights are the operand of 64-row pieces, so that few rows of x do not waste them; sums are then
// transposed on their way out.
#include "int8_launch.h"
#include "int8_result.cuh"
#include "launch.h"
#include "ptx_tma.h"
#include "ptx_wgmma.h"

namespace bigmodel {
namespace {

constexpr int kWarp = 32, kWarpgroup = 128, kMultipliers = 2, kThreads = (1 + kMultipliers) * kWarpgroup;
constexpr int kWarps = kMultipliers * kWarpgroup / kWarp;               // that multiply
constexpr int kRows = kMultipliers * 64, kStepK = 128;                  // the swizzle's row: 128 bytes
constexpr int kPieceColumns = 32, kPiecePitch = 40, kTurnedPitch = 20;  // of sums on their way out, in int32
constexpr int kPiece = 16 * kPiecePitch;                                // int32 of a warp
constexpr int kRowsTogether = 16;  // row tiles that go over the columns side by side, for the L2 cache
constexpr int kRegistersCopying = 40, kRegistersMultiplying = 232;

template <Int8Wgmma kTile, int kStages_>
struct Shape {
  static constexpr TileSize kSize = kWgmmaSizes[static_cast<int>(kTile)];
  static constexpr bool kSwapped = kTile == Int8Wgmma::swapped;
  static constexpr int kColumns = kSwapped ? kSize.m : kSize.n, kStages = kStages_;
  static_assert((kSwapped ? kSize.n : kSize.m) == kRows && kSize.k == kStepK, "What all tiles have.");
  static constexpr int kLeft = kRows * kStepK, kStage = kLeft + kColumns * kStepK;  // bytes
  static constexpr int kPieces = kStages * kStage, kBarriers = kPieces + kWarps * kPiece * 4;
  static constexpr int kShared = kBarriers + kStages * 16;
  static_assert(kShared <= 227 << 10, "A block's shared memory.");
  static_assert(kStage % 1024 == 0 && kLeft % 1024 == 0, "Patterns of the 128-byte swizzle.");
  static_assert(kTurnedPitch * kPieceColumns <= kPiece, "Either way round, the sums fit.");
};

// What is multiplied: left rows x right rows ("columns") by tiles, a tile's steps of K in splits.
struct Work {
  int rows, columns, steps, splits, row_tiles = 0, column_tiles = 0, units = 0;
};

// A piece of it: a tile and the steps of K that are summed.
struct Unit {
  int row, column, first_step, last_step, split;
};

__device__ __forceinline__ Unit unit_of(const Work& work, int index, int columns_of_tile) {
  const int tiles = work.row_tiles * work.column_tiles, split = index / tiles, tile = index - split * tiles;
  const int group = tile / (kRowsTogether * work.column_tiles) * kRowsTogether;
  const int together = min(work.row_tiles - group, kRowsTogether), rest = tile - group * work.column_tiles;
  return {(group + rest % together) * kRows, rest / together * columns_of_tile, work.steps * split / work.splits,
          work.steps * (split + 1) / work.splits, split};
}

#if defined(BIGMODEL_SM90A)

// The stages in their order, round and round.
template <typename S>
struct Ring {
  uint32_t base;  // of the shared memory
  int stage = 0;
  uint32_t round = 0;  // its lowest bit: the parity of the barriers' phase

  __device__ __forceinline__ uint32_t left() const { return base + stage * S::kStage; }
  __device__ __forceinline__ uint32_t right() const { return left() + S::kLeft; }
  __device__ __forceinline__ uint32_t full() const { return base + S::kBarriers + stage * 16; }
  __device__ __forceinline__ uint32_t empty() const { return full() + 8; }
  __device__ __forceinline__ void advance() {
    if (++stage < S::kStages) return;
    stage = 0;
    round ^= 1;
  }
};

template <typename S>
__device__ __forceinline__ void start_barriers(Ring<S> ring) {
#pragma unroll 1
  for (; ring.round == 0; ring.advance()) {
    ptx::mbarrier_init(ring.full(), 1);
    ptx::mbarrier_init(ring.empty(), kWarps);
  }
  ptx::fence_mbarrier_init();
}

// One thread.
template <typename S>
__device__ __forceinline__ void copy_units(const TensorMap& left, const TensorMap& right, const Work& work,
                                           Ring<S> ring) {
#pragma unroll 1
  for (int u = blockIdx.x; u < work.units; u += gridDim.x) {
    const Unit unit = unit_of(work, u, S::kColumns);
#pragma unroll 1
    for (int step = unit.first_step; step < unit.last_step; ++step) {
      ptx::mbarrier_wait(ring.empty(), ring.round ^ 1);
      ptx::mbarrier_arrive_expect(ring.full(), S::kStage);
      ptx::tensor_load(ring.left(), left, step * kStepK, unit.row, ring.full());
      ptx::tensor_load(ring.right(), right, step * kStepK, unit.column, ring.full());
      ring.advance();
    }
  }
}

// A warpgroup's sums of 64 x kColumns, as wgmma has them.
template <typename S>
using Sums = int32_t[S::kColumns / 2];

// The sums over a unit's steps. A stage is given back one step later, when its products are done for sure and the next
// ones are under way.
template <typename S>
__device__ __forceinline__ void multiply_unit(const Unit& unit, int own_row, Ring<S>& ring, Sums<S>& sum) {
  const bool signs = threadIdx.x % kWarp == 0;  // for its warp
  uint32_t before = 0;
#pragma unroll 1
  for (int step = unit.first_step; step < unit.last_step; ++step) {
    ptx::mbarrier_wait(ring.full(), ring.round);
    const uint64_t a = ptx::matrix_descriptor(ring.left() + own_row * kStepK, TensorSwizzle::bytes_128, 8 * kStepK);
    const uint64_t b = ptx::matrix_descriptor(ring.right(), TensorSwizzle::bytes_128, 8 * kStepK);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kStepK / 32; ++k) ptx::wgmma_s8(sum, a + 2 * k, b + 2 * k, step > unit.first_step || k > 0);
    ptx::wgmma_commit();
    ptx::wgmma_wait<1>();
    if (signs && before) ptx::mbarrier_arrive(before);
    before = ring.empty();
    ring.advance();
  }
  ptx::wgmma_wait<0>();
  ptx::wgmma_hold(sum);
  if (signs) ptx::mbarrier_arrive(before);
}

// Sums of 16 rows and 32 columns from `first` on, to the warp's piece of shared memory: rows of out together.
template <typename S>
__device__ __forceinline__ void stage_piece(const Sums<S>& sum, int first, int32_t* piece) {
  const int group = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int j = 0; j < kPieceColumns / 8; ++j)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int32_t one = sum[first / 2 + 4 * j + 2 * h], two = sum[first / 2 + 4 * j + 2 * h + 1];
      if constexpr (S::kSwapped) {
        piece[(8 * j + 2 * t) * kTurnedPitch + group + 8 * h] = one;
        piece[(8 * j + 2 * t + 1) * kTurnedPitch + group + 8 * h] = two;
      } else {
        *reinterpret_cast<int2*>(piece + (group + 8 * h) * kPiecePitch + 8 * j + 2 * t) = make_int2(one, two);
      }
    }
}

// The warp's piece, whose first output is (m, n), to device memory: a lane has four neighbours of a row at a time.
template <typename S>
__device__ __forceinline__ void store_piece(const Int8Result& r, int m, int m_end, int n, int n_end,
                                            const int32_t* piece) {
  constexpr int kPitch = S::kSwapped ? kTurnedPitch : kPiecePitch, kLanesOfRow = S::kSwapped ? 4 : 8;
  constexpr int kAtOnce = kWarp / kLanesOfRow, kLaneRows = (S::kSwapped ? 32 : 16) / kAtOnce;
  const int lane = threadIdx.x % kWarp, column = lane % kLanesOfRow * 4, row = lane / kLanesOfRow;
  int32_t sum[kLaneRows][4];
  float x_scale[kLaneRows];
#pragma unroll
  for (int i = 0; i < kLaneRows; ++i) {
    const int4 four = *reinterpret_cast<const int4*>(piece + (row + i * kAtOnce) * kPitch + column);
    sum[i][0] = four.x;
    sum[i][1] = four.y;
    sum[i][2] = four.z;
    sum[i][3] = four.w;
    x_scale[i] = x_scale_of(r, min(m + row + i * kAtOnce, m_end - 1));
  }
  const Columns<4> columns = load_columns<4>(r, n + column, n_end);
  store_rows<kLaneRows, kAtOnce>(r, m + row, m_end, n + column, n_end, columns, x_scale, sum);
}

template <typename S>
__device__ __forceinline__ void store_unit(const Work& work, const Unit& unit, const Int8Result& result, int32_t* piece,
                                           const Sums<S>& sum) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp - kWarpgroup / kWarp, row = unit.row + warp * 16;
  if (row >= work.rows) return;
  Int8Result r = result;
  if (work.splits > 1)
    r.out = static_cast<int32_t*>(r.out) + static_cast<int64_t>(unit.split) * work.rows * work.columns;
#pragma unroll 1
  for (int first = 0; first < S::kColumns; first += kPieceColumns) {  // not unrolled: the activations' code is long
    const int column = unit.column + first;
    if (column >= work.columns) return;
#pragma unroll
    for (int own = 0; own < S::kColumns; own += kPieceColumns)
      if (own == first) stage_piece<S>(sum, own, piece);
    __syncwarp();
    if constexpr (S::kSwapped)
      store_piece<S>(r, column, work.columns, row, work.rows, piece);
    else
      store_piece<S>(r, row, work.rows, column, work.columns, piece);
    __syncwarp();
  }
}

#endif

template <typename S>
__global__ void __launch_bounds__(kThreads, 1)
    int8_wgmma_kernel(const __grid_constant__ TensorMap left, const __grid_constant__ TensorMap right, Work work,
                      Int8Result result) {
#if defined(BIGMODEL_SM90A)
  char* const shared = dynamic_shared<char>();
  Ring<S> ring = {ptx::shared_address(shared)};
  if (threadIdx.x == 0) start_barriers(ring);
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    ptx::give_registers<kRegistersCopying>();
    if (threadIdx.x == 0) copy_units(left, right, work, ring);
  } else {
    ptx::take_registers<kRegistersMultiplying>();
    const int own = static_cast<int>(threadIdx.x) - kWarpgroup;
    int32_t* const piece = reinterpret_cast<int32_t*>(shared + S::kPieces) + own / kWarp * kPiece;
    Sums<S> sum;
#pragma unroll 1
    for (int u = blockIdx.x; u < work.units; u += gridDim.x) {
      const Unit unit = unit_of(work, u, S::kColumns);
      multiply_unit(unit, own / kWarpgroup * 64, ring, sum);
      store_unit<S>(work, unit, result, piece, sum);
    }
  }
#endif
}

TensorMap map_of(const int8_t* p, int64_t stride, int rows, int k, int box_rows) {
  return make_tensor_map(TensorElement::s8, p, {k, rows}, {stride}, {kStepK, box_rows}, TensorSwizzle::bytes_128);
}

template <typename S>
void launch_shape(const Int8Operands& o, const Int8Result& r, int splits, int multiprocessors, cudaStream_t stream) {
  const TensorMap a = map_of(o.a, o.a_stride, o.m, o.k, S::kSwapped ? S::kColumns : kRows);
  const TensorMap b = map_of(o.b, o.b_stride, o.n, o.k, S::kSwapped ? kRows : S::kColumns);
  Work work = {S::kSwapped ? o.n : o.m, S::kSwapped ? o.m : o.n, (o.k + kStepK - 1) / kStepK, splits};
  work.row_tiles = (work.rows + kRows - 1) / kRows;
  work.column_tiles = (work.columns + S::kColumns - 1) / S::kColumns;
  work.units = work.row_tiles * work.column_tiles * splits;
  const unsigned grid = static_cast<unsigned>(work.units < multiprocessors ? work.units : multiprocessors);
  launch("int8_wgmma", int8_wgmma_kernel<S>, {grid, kThreads, S::kShared, stream}, S::kSwapped ? b : a,
         S::kSwapped ? a : b, work, r);
}

}  // namespace

void launch_int8_wgmma(Int8Wgmma tile, const Int8Operands& o, const Int8Result& r, int splits, int multiprocessors,
                       cudaStream_t stream) {
  switch (tile) {
    case Int8Wgmma::swapped:
      return launch_shape<Shape<Int8Wgmma::swapped, 8>>(o, r, splits, multiprocessors, stream);
    case Int8Wgmma::medium:
      return launch_shape<Shape<Int8Wgmma::medium, 6>>(o, r, splits, multiprocessors, stream);
    case Int8Wgmma::large:
      return launch_shape<Shape<Int8Wgmma::large, 4>>(o, r, splits, multiprocessors, stream);
  }
}

}  // namespace bigmodel
