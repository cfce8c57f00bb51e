// A few rows of 16-bit activations times a sparse matrix in masks and units (sparse_bits.h), values in the same dtype;
// sparse_bits_<dtype>.cu instantiate it.
//
// A warp takes a row of W, 1024 columns at a time; a lane takes a word of the mask, 32 columns, and its values, which
// come in 16-byte pieces, one step ahead of their use, straight into registers. Values begin anywhere in the first
// piece: eight at a time are shifted into place. Work is done for stored columns only, one after another in each lane:
// the mask's next bit gives the column, whose activations are in shared memory (staged_rows.cuh). With half of W stored
// memory and arithmetic are about equally busy on an H100, so instructions are counted here.
#pragma once

#include "launch.h"
#include "linear_epilogue.h"
#include "sparse_bits.h"
#include "staged_rows.cuh"

namespace bigmodel {
namespace {

constexpr int kStep = 1024, kGroup = 8, kGroups = 32 / kGroup;

// The pieces that hold a word's values.
struct Pieces {
  uint4 piece[kGroups + 1];
};

// The last values, fewer than eight.
__device__ __forceinline__ uint4 load_last_piece(const BitsArgs& a, uint32_t from) {
  const uint16_t* values = static_cast<const uint16_t*>(a.values) + from;
  uint32_t pair[4] = {};
#pragma unroll
  for (int i = 0; i < kGroup; ++i)
    if (from + i < a.stored) pair[i / 2] |= static_cast<uint32_t>(__ldg(values + i)) << (i % 2 * 16);
  return make_uint4(pair[0], pair[1], pair[2], pair[3]);
}

__device__ __forceinline__ Pieces load_pieces(const BitsArgs& a, MaskWord w) {
  Pieces p = {};
  if (!w.mask) return p;
  const uint32_t first = w.first / kGroup * kGroup, end = w.first + __popc(w.mask);
  const uint32_t last = static_cast<uint32_t>(a.stored) / kGroup * kGroup;  // the piece that may not be a whole one
#pragma unroll
  for (int i = 0; i <= kGroups; ++i)
    if (first + kGroup * i < min(end, last))
      p.piece[i] = ptx::load_streaming_16(static_cast<const uint16_t*>(a.values) + first + kGroup * i);
  if (end > last) {
#pragma unroll
    for (int i = 0; i <= kGroups; ++i)
      if (first + kGroup * i == last) p.piece[i] = load_last_piece(a, last);
  }
  return p;
}

// Values shift to shift + 7 of two pieces, in pairs.
__device__ __forceinline__ void shift_into_place(uint4 a, uint4 b, uint32_t shift, uint32_t (&pair)[4]) {
  const uint32_t all[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
  uint32_t four[6], two[5];
#pragma unroll
  for (int i = 0; i < 6; ++i) four[i] = shift & 4 ? all[i + 2] : all[i];
#pragma unroll
  for (int i = 0; i < 5; ++i) two[i] = shift & 2 ? four[i + 1] : four[i];
#pragma unroll
  for (int i = 0; i < 4; ++i) pair[i] = __funnelshift_r(two[i], two[i + 1], shift % 2 * 16);
}

__device__ __forceinline__ float staged(float x) { return x; }
template <typename T>
__device__ __forceinline__ float staged(T x) {
  return widen(x);
}

// x: of column 31 of the word, as stage_rows lays it out. Without a branch: what is behind the last stored column is
// loaded from the padding and not added.
template <typename T, typename X, int kM>
__device__ __forceinline__ void add_word(MaskWord w, const Pieces& p, const char* x, float (&sum)[kM]) {
  const int longest = __reduce_max_sync(0xffffffffu, __popc(w.mask));
  uint32_t left = __brev(w.mask);  // its highest bit is the next column
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    if (kGroup * g >= longest) break;
    uint32_t pair[4];
    shift_into_place(p.piece[g], p.piece[g + 1], w.first % kGroup, pair);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const bool more = left != 0;
      const int bit = 31 - __clz(static_cast<int>(left));
      left &= __funnelshift_l(~1u, ~1u, bit);  // all bits but this one
      const float v = widen(T{static_cast<uint16_t>(pair[i / 2] >> (i % 2 * 16))});
      const auto column = *reinterpret_cast<const Column<X, kM>*>(x + bit * static_cast<int>(sizeof(Column<X, kM>)));
#pragma unroll
      for (int m = 0; m < kM; ++m)
        if (more) sum[m] = fmaf(v, staged(column.row[m]), sum[m]);
    }
  }
}

template <typename T, int kM>
struct Staged {  // activations of one row are widened once
  using Type = T;
};
template <typename T>
struct Staged<T, 1> {
  using Type = float;
};

template <typename T, int kM>
__global__ void __launch_bounds__(kThreads, 2)
    sparse_bits_kernel(BitsArgs a, int pass_columns, LinearEpilogue epilogue) {
  using X = typename Staged<T, kM>::Type;
  Column<X, kM>* xs = dynamic_shared<Column<X, kM>>();
  const int lane = threadIdx.x % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const auto word = [&](int column) { return load_word(a, row, column / kUnit + lane / 4, lane % 4); };

  float sum[kM] = {};
  MaskWord here = word(0), next = word(kStep);
  Pieces pieces = load_pieces(a, here);
  for (int first = 0; first < a.k; first += pass_columns) {
    if (first) __syncthreads();
    stage_rows<T, kReversed>(a, 0, first, pass_columns, xs);
    __syncthreads();
    const int end = min(first + pass_columns, a.k);
    for (int column = first; column < end; column += kStep) {
      const Pieces ahead = load_pieces(a, next);
      const MaskWord after = word(column + 2 * kStep);
      add_word<T, X>(here, pieces,
                     reinterpret_cast<const char*>(xs + staged_at<kReversed>(column - first + 32 * lane + 31)), sum);
      here = next;
      next = after;
      pieces = ahead;
    }
  }
  if (row >= a.n) return;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int step = 16; step; step /= 2) sum[m] += __shfl_xor_sync(0xffffffffu, sum[m], step);
    if (lane == 0 && m < a.m) finish(epilogue, m, row, sum[m]);
  }
}

template <typename T, int kM>
void launch_rows(const BitsArgs& a, const LinearEpilogue& epilogue, cudaStream_t stream) {
  constexpr int kColumn = sizeof(Column<typename Staged<T, kM>::Type, kM>);
  const int columns = min(kStagedBytes / kColumn, (a.k + kStep - 1) / kStep * kStep);
  const dim3 grid((a.n + kWarps - 1) / kWarps);
  const size_t shared = static_cast<size_t>(columns / 32 * 33) * kColumn;
  launch("sparse_bits", sparse_bits_kernel<T, kM>, {grid, kThreads, shared, stream}, a, columns, epilogue);
}

template <typename T>
void launch_bits(const BitsArgs& a, const LinearEpilogue& epilogue, cudaStream_t stream) {
  if (a.m <= 1) return launch_rows<T, 1>(a, epilogue, stream);
  if (a.m <= 2) return launch_rows<T, 2>(a, epilogue, stream);
  if (a.m <= 4) return launch_rows<T, 4>(a, epilogue, stream);
  launch_rows<T, 8>(a, epilogue, stream);
}

}  // namespace
}  // namespace bigmodel
