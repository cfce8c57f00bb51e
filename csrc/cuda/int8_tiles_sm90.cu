// Any M on compute capability 9.0, by wgmma. Blocks are persistent: one to a multiprocessor, each takes every
// gridDim.x-th tile. A thread of the first warpgroup copies tiles of both operands by TMA, up to kStages steps of K
// ahead, also into the next tile; the other two warpgroups multiply half of the rows each. Per stage two mbarriers:
// `full` is passed when the bytes are there, `empty` when all warps have read them.
//
// kSwapped: the weights are the left operand, whose rows come in 64s, so that few rows of x do not waste them; sums are
// then transposed on their way out.
#include "int8_launch.h"
#include "int8_result.cuh"
#include "launch.h"
#include "ptx_tma.h"
#include "ptx_wgmma.h"

namespace bigmodel {
namespace {

constexpr int kWarp = 32, kWarpgroup = 128, kMultipliers = 2, kThreads = (1 + kMultipliers) * kWarpgroup;
constexpr int kWarps = kMultipliers * kWarpgroup / kWarp;  // that multiply
constexpr int kStepK = 128;                                // the swizzle's row: 128 bytes
// Of a thread. All together they are what a multiprocessor has; the launch starts with equal shares.
constexpr int kRegistersCopying = 24, kRegistersMultiplying = 240;
constexpr int kPieceColumns = 32, kPiecePitch = 40, kTurnedPitch = 20;  // of sums on their way out, in int32
constexpr int kPiece = 16 * kPiecePitch;                                // int32 of a warp
constexpr int kRowsTogether = 16;  // row tiles that go over the columns side by side, for the L2 cache

template <Int8Wgmma kTile, int kStages_>
struct Shape {
  static constexpr TileSize kSize = kWgmmaSizes[static_cast<int>(kTile)];
  static constexpr bool kSwapped = kTile == Int8Wgmma::swapped;
  static constexpr int kRows = kSwapped ? kSize.n : kSize.m, kColumns = kSwapped ? kSize.m : kSize.n;
  static constexpr int kStages = kStages_;
  static constexpr int kBlocks = kRows / kMultipliers / 64;                         // of 64 rows, a warpgroup's
  static constexpr int kLeft = kRows * kStepK, kStage = kLeft + kColumns * kStepK;  // bytes
  static constexpr int kPieces = kStages * kStage, kBarriers = kPieces + kWarps * kPiece * 4;
  static constexpr int kShared = kBarriers + kStages * 16;
  static_assert(kBlocks * kMultipliers * 64 == kRows && kSize.k == kStepK, "wgmma has 64 rows.");
  static_assert(kShared <= 227 << 10, "A block's shared memory.");
  static_assert(kStage % 1024 == 0 && kLeft % 1024 == 0, "Patterns of the 128-byte swizzle.");
  static_assert(kTurnedPitch * kPieceColumns <= kPiece, "Either way round, the sums fit.");
};

// What is multiplied: left rows x right rows ("columns") by tiles, a tile's steps of K in splits.
struct Work {
  int rows, columns, steps, splits, row_tiles = 0, column_tiles = 0, units = 0;

  template <typename S>
  __device__ __forceinline__ int m() const {
    return S::kSwapped ? columns : rows;
  }
  template <typename S>
  __device__ __forceinline__ int n() const {
    return S::kSwapped ? rows : columns;
  }
};

// A piece of it: a tile and the steps of K that are summed.
struct Unit {
  int row, column, first_step, last_step, split;
};

template <typename S>
__device__ __forceinline__ Unit unit_of(const Work& work, int index) {
  const int tiles = work.row_tiles * work.column_tiles, split = index / tiles, tile = index - split * tiles;
  const int group = tile / (kRowsTogether * work.column_tiles) * kRowsTogether;
  const int together = min(work.row_tiles - group, kRowsTogether), rest = tile - group * work.column_tiles;
  return {(group + rest % together) * S::kRows, rest / together * S::kColumns, work.steps * split / work.splits,
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
    const Unit unit = unit_of<S>(work, u);
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

// A warpgroup's sums: blocks of 64 x kColumns, as wgmma has them.
template <typename S>
using Sums = int32_t[S::kBlocks][S::kColumns / 2];

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
    for (int k = 0; k < kStepK / 32; ++k)
#pragma unroll
      for (int i = 0; i < S::kBlocks; ++i)
        ptx::wgmma_s8(sum[i], a + 2 * k + 4 * kStepK * i, b + 2 * k, step > unit.first_step || k > 0);
    ptx::wgmma_commit();
    ptx::wgmma_wait<1>();
    if (signs && before) ptx::mbarrier_arrive(before);
    before = ring.empty();
    ring.advance();
  }
  ptx::wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < S::kBlocks; ++i) ptx::wgmma_hold(sum[i]);
  if (signs) ptx::mbarrier_arrive(before);
}

// The at-th piece of the warp's sums, 16 rows and 32 columns, to shared memory: rows of out together. It is looked for
// among constants: with an index that varies, sums would lie in local memory.
template <typename S, int kAt = 0>
__device__ __forceinline__ void stage_piece(const Sums<S>& sum, int at, int32_t* piece) {
  constexpr int kAcross = S::kColumns / kPieceColumns;
  if (at != kAt) {
    if constexpr (kAt + 1 < S::kBlocks * kAcross) stage_piece<S, kAt + 1>(sum, at, piece);
    return;
  }
  const int group = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
  const int32_t* own = sum[kAt / kAcross] + kAt % kAcross * (kPieceColumns / 2);
#pragma unroll
  for (int i = 0; i < kPieceColumns / 2; i += 2) {
    const int row = group + i / 2 % 2 * 8, column = i / 4 * 8 + 2 * t;
    if constexpr (S::kSwapped) {
      piece[column * kTurnedPitch + row] = own[i];
      piece[(column + 1) * kTurnedPitch + row] = own[i + 1];
    } else {
      *reinterpret_cast<int2*>(piece + row * kPiecePitch + column) = make_int2(own[i], own[i + 1]);
    }
  }
}

// How a warp's piece lies: rows of out, a lane has four neighbours of every kAtOnce-th one. It is stored in kPasses, so
// that the sums leave registers for what is being stored.
template <typename S>
struct Piece {
  static constexpr int kPitch = S::kSwapped ? kTurnedPitch : kPiecePitch, kLanesOfRow = S::kSwapped ? 4 : 8;
  static constexpr int kPasses = S::kBlocks, kAcross = S::kColumns / kPieceColumns;
  static constexpr int kAtOnce = kWarp / kLanesOfRow, kLaneRows = (S::kSwapped ? 32 : 16) / kAtOnce / kPasses;
};

// A pass over a piece: where the lane's outputs are, and what belongs to their rows and columns.
template <typename S>
struct Pass {
  int m, n;
  Columns<4> columns;
  float x_scale[Piece<S>::kLaneRows];

  // The i-th one of the warp's rows from `row` on and the unit's columns from `column` on.
  __device__ __forceinline__ Pass(const Work& work, const Int8Result& r, int row, int column, int i) {
    using P = Piece<S>;
    const int piece = i / P::kPasses, lane = threadIdx.x % kWarp;
    row += piece / P::kAcross * 64;
    column += piece % P::kAcross * kPieceColumns;
    m = (S::kSwapped ? column : row) + lane / P::kLanesOfRow + i % P::kPasses * P::kLaneRows * P::kAtOnce;
    n = (S::kSwapped ? row : column) + lane % P::kLanesOfRow * 4;
    columns = load_columns<4>(r, n, work.n<S>());
#pragma unroll
    for (int j = 0; j < P::kLaneRows; ++j) x_scale[j] = x_scale_of(r, min(m + j * P::kAtOnce, work.m<S>() - 1));
  }
};

template <typename S>
__device__ __forceinline__ void store_pass(const Work& work, const Int8Result& r, const Pass<S>& pass, int i,
                                           const int32_t* piece) {
  using P = Piece<S>;
  const int lane = threadIdx.x % kWarp, row = lane / P::kLanesOfRow + i % P::kPasses * P::kLaneRows * P::kAtOnce;
  const int32_t* from = piece + row * P::kPitch + lane % P::kLanesOfRow * 4;
  int32_t sum[P::kLaneRows][4];
#pragma unroll
  for (int j = 0; j < P::kLaneRows; ++j) {
    const int4 four = *reinterpret_cast<const int4*>(from + j * P::kAtOnce * P::kPitch);
    sum[j][0] = four.x;
    sum[j][1] = four.y;
    sum[j][2] = four.z;
    sum[j][3] = four.w;
  }
  store_rows<P::kLaneRows, P::kAtOnce>(r, pass.m, work.m<S>(), pass.n, work.n<S>(), pass.columns, pass.x_scale, sum);
}

// The warp's rows of the unit, a piece at a time.
template <typename S>
__device__ __forceinline__ void store_unit(const Work& work, const Unit& unit, const Int8Result& result, int own_row,
                                           int32_t* piece, const Sums<S>& sum) {
  using P = Piece<S>;
  constexpr bool kAhead = S::kBlocks == 1;  // scales are loaded a pass ahead, where sums leave registers for it
  Int8Result r = result;
  if (work.splits > 1)
    r.out = static_cast<int32_t*>(r.out) + static_cast<int64_t>(unit.split) * work.rows * work.columns;
  const auto pass_at = [&](int i) { return Pass<S>(work, r, unit.row + own_row, unit.column, i); };
  Pass<S> pass = pass_at(0);
#pragma unroll 1
  for (int i = 0; i < S::kBlocks * P::kAcross * P::kPasses; ++i) {  // not unrolled: the activations' code is long
    const Pass<S> next = kAhead ? pass_at(i + 1) : pass;
    if (i % P::kPasses == 0) {
      __syncwarp();
      stage_piece<S>(sum, i / P::kPasses, piece);
      __syncwarp();
    }
    store_pass<S>(work, r, pass, i, piece);
    pass = kAhead ? next : pass_at(i + 1);
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
  if (threadIdx.x == 0) {
    ptx::prefetch_tensor_map(left);
    ptx::prefetch_tensor_map(right);
    start_barriers(ring);
  }
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    ptx::give_registers<kRegistersCopying>();
    if (threadIdx.x == 0) copy_units(left, right, work, ring);
  } else {
    ptx::take_registers<kRegistersMultiplying>();
    const int own = static_cast<int>(threadIdx.x) - kWarpgroup;
    const int own_row = own / kWarpgroup * S::kBlocks * 64 + own % kWarpgroup / kWarp * 16;  // the warp's first
    int32_t* const piece = reinterpret_cast<int32_t*>(shared + S::kPieces) + own / kWarp * kPiece;
    Sums<S> sum;
#pragma unroll 1
    for (int u = blockIdx.x; u < work.units; u += gridDim.x) {
      const Unit unit = unit_of<S>(work, u);
      multiply_unit(unit, own / kWarpgroup * S::kBlocks * 64, ring, sum);
      store_unit<S>(work, unit, result, own_row, piece, sum);
    }
  }
#endif
}

TensorMap map_of(const int8_t* p, int64_t stride, int rows, int k, int box_rows) {
  return make_tensor_map(TensorElement::s8, p, {k, rows}, {stride}, {kStepK, box_rows}, TensorSwizzle::bytes_128);
}

template <typename S>
void launch_shape(const Int8Operands& o, const Int8Result& r, int splits, int multiprocessors, cudaStream_t stream) {
  const TensorMap a = map_of(o.a, o.a_stride, o.m, o.k, S::kSwapped ? S::kColumns : S::kRows);
  const TensorMap b = map_of(o.b, o.b_stride, o.n, o.k, S::kSwapped ? S::kRows : S::kColumns);
  Work work = {S::kSwapped ? o.n : o.m, S::kSwapped ? o.m : o.n, (o.k + kStepK - 1) / kStepK, splits};
  work.row_tiles = (work.rows + S::kRows - 1) / S::kRows;
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
    case Int8Wgmma::largest:
      return launch_shape<Shape<Int8Wgmma::largest, 3>>(o, r, splits, multiprocessors, stream);
  }
}

}  // namespace bigmodel
