// What the sparse kernels take, and their launches: between sparse_linear.cpp, which nvcc need not see, and the
// kernels' files.
#pragma once

#include "../common/activation.h"
#include "../common/view.h"
#include "guard.h"
#include "sparse_linear.h"

namespace bigmodel {

constexpr int kUnit = 128, kUnitWords = 4;

struct SparseBits {
  const uint4* masks;
  const uint2* units;
  int n, k, row_units;
};

struct LinearEpilogue {
  const float *scale, *weight_scale;  // both or neither
  const void* bias;
  DType bias_dtype, dtype;  // dtype: of out
  Activation activation;
  void* out;  // [M, n]
  int64_t n;
};

struct RowsArgs {
  const void *x, *values;
  const uint8_t* col;
  const int2* runs;
  int64_t m, x_stride;  // elements between x's rows
  int n, k, panel, panels;
  int pass_panels = 0;  // panels whose activations are in shared memory at a time
};

// `values` is aligned to 16 bytes, the first one lies `skip` elements behind.
struct BitsArgs : SparseBits {
  const void *x, *values;
  int64_t m, x_stride, stored;  // stored: values, and `skip` before them
  uint32_t skip;
};

struct TilesArgs {
  BitsArgs w;     // w.x: the first operand
  const void* b;  // grad_values: x
  int64_t b_stride;
  int steps = 0;
};

template <DType X, bool kSame>  // kSame: values of x's dtype (or words of int8, X = i32), else float32
void launch_sparse_rows(const RowsArgs& args, const LinearEpilogue& epilogue, cudaStream_t stream);
template <DType T>
void launch_sparse_bits(const BitsArgs& args, const LinearEpilogue& epilogue, cudaStream_t stream);
template <DType T>
void launch_sparse_tiles(SparseProduct product, const TilesArgs& args, const LinearEpilogue& epilogue,
                         cudaStream_t stream);

void launch_sparse_int8_tiles(const BitsArgs& args, const LinearEpilogue& epilogue, cudaStream_t stream);

// Elements of 2 or 4 bytes; dense is aligned to 16 bytes. `spread`: values -> dense [n,k]; else dense -> values.
void launch_sparse_dense(const SparseBits& w, void* values, void* dense, int bytes, bool spread, cudaStream_t stream);

template <>
void launch_sparse_rows<DType::f32, true>(const RowsArgs&, const LinearEpilogue&, cudaStream_t);
template <>
void launch_sparse_rows<DType::bf16, true>(const RowsArgs&, const LinearEpilogue&, cudaStream_t);
template <>
void launch_sparse_rows<DType::f16, true>(const RowsArgs&, const LinearEpilogue&, cudaStream_t);
template <>
void launch_sparse_rows<DType::i32, true>(const RowsArgs&, const LinearEpilogue&, cudaStream_t);
template <>
void launch_sparse_rows<DType::bf16, false>(const RowsArgs&, const LinearEpilogue&, cudaStream_t);
template <>
void launch_sparse_rows<DType::f16, false>(const RowsArgs&, const LinearEpilogue&, cudaStream_t);
template <>
void launch_sparse_bits<DType::bf16>(const BitsArgs&, const LinearEpilogue&, cudaStream_t);
template <>
void launch_sparse_tiles<DType::bf16>(SparseProduct, const TilesArgs&, const LinearEpilogue&, cudaStream_t);
template <>
void launch_sparse_bits<DType::f16>(const BitsArgs&, const LinearEpilogue&, cudaStream_t);
template <>
void launch_sparse_tiles<DType::f16>(SparseProduct, const TilesArgs&, const LinearEpilogue&, cudaStream_t);

}  // namespace bigmodel
