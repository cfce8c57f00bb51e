// Between fused_dropout_norm.cpp, which nvcc need not see, and the kernels' files.
#pragma once

#include "fused_dropout_norm.h"
#include "guard.h"

namespace bigmodel {

constexpr int kNormTile = 256;          // elements of a row that a warp takes at once
constexpr int kNormTiles = 4;           // to a warp
constexpr int kNormBackwardTiles = 2;   // fewer: they hold more operands
constexpr int kNormBackwardWarps = 8;   // of a block, at least
constexpr int kNormBackwardBlocks = 2;  // to a multiprocessor

inline int norm_warps(int64_t features, int tiles) {
  const int64_t elements = int64_t{kNormTile} * tiles;
  return static_cast<int>((features + elements - 1) / elements);
}
// Rows that a block of the backward pass works on at a time.
inline int norm_rows_at_once(int64_t features) {
  const int warps = norm_warps(features, kNormBackwardTiles);
  return warps >= kNormBackwardWarps ? 1 : kNormBackwardWarps / warps;
}

template <DType D>
void launch_norm(const DropoutNormArgs& args, cudaStream_t stream);
template <DType D>
void launch_norm_backward(const DropoutNormBackwardArgs& args, int64_t slabs, cudaStream_t stream);

#define BIGMODEL_DECLARE(D)                                         \
  template <>                                                       \
  void launch_norm<DType::D>(const DropoutNormArgs&, cudaStream_t); \
  template <>                                                       \
  void launch_norm_backward<DType::D>(const DropoutNormBackwardArgs&, int64_t, cudaStream_t)
BIGMODEL_DECLARE(f32);
BIGMODEL_DECLARE(bf16);
BIGMODEL_DECLARE(f16);
#undef BIGMODEL_DECLARE

void launch_sum_slabs(const float* slabs, int64_t count, int64_t columns, float* sums, cudaStream_t stream);

}  // namespace bigmodel
