// Unstructured sparse W [N,K] on a GPU; csrc/cpu/sparse_linear.h has the formulas, sparse_bits.h the layout. Tensors
// are contiguous; rows of x, grad and q may be further apart than they are long.
//
//   sparse_rows   few rows of x: a warp to a row of W; runs, values and column bytes are streamed once
//   sparse_bits   few rows of x, 16-bit: the same with masks in the place of column bytes
//   sparse_tiles  more rows, 16-bit: tiles of W become dense in shared memory and are multiplied by tensor cores
//   sparse_int8_tiles  the same in int8
//   sparse_dense  many rows: all of W becomes dense for a dense product, or its stored entries are taken out of one
//
// In tiles and in dense products what is not stored counts as 0, so that NaN and infinities in x reach all of their row
// of y.
//
// The order of every sum is fixed: the same result in every run.
#pragma once

#include <cstdint>

#include "../common/activation.h"
#include "../common/view.h"

namespace bigmodel {

constexpr int64_t kFewRows = 8;

struct SparseEpilogue {
  const View *bias, *scale, *weight_scale;  // scale and weight_scale: of int8
  const char* activation;
};

// Derives masks and units (or, where they are null, only checks); n counts rows, k columns (or 1x4 blocks). `rows`
// int32 names the row at each place of each panel. *wrong becomes 1 where col is not increasing or beyond its panel.
void sparse_derive_cuda(const View& crow, const View& col, const View* rows, const View* masks, const View* units,
                        const View& wrong, int64_t n, int64_t k, int64_t panel, void* stream);

// x [M,K] in floats, or int32 words of four int8; values [nnz] float32, x's dtype or int32 words; out [M,N].
void sparse_rows_cuda(const View& x, const View& values, const View& col, const View& runs, int64_t panel,
                      const SparseEpilogue& epilogue, const View& out, void* stream);

// masks and units of W [N,k].
struct SparseMasks {
  const View &masks, &units;
  int64_t k;
};

// x [M,K] and values of one 16-bit dtype, x's rows aligned to 8 bytes; M <= kFewRows.
void sparse_bits_cuda(const View& x, const View& values, const SparseMasks& w, const SparseEpilogue& epilogue,
                      const View& out, void* stream);

enum class SparseProduct { forward, grad_input, grad_values };
// 16-bit floats, rows aligned to 16 bytes. forward: a = x [M,K] -> out [M,N]; grad_input: a = grad [M,N] -> out [M,K];
// both with values of a's dtype. grad_values: a = grad [M,N], b = x [M,K] -> out [nnz].
void sparse_tiles_cuda(SparseProduct product, const View& a, const View* b, const View* values, const SparseMasks& w,
                       const SparseEpilogue& epilogue, const View& out, void* stream);

// x int32 [M,k], words of four int8, rows aligned to 16 bytes; values int32 [nnz] -> out [M,N].
void sparse_int8_tiles_cuda(const View& x, const View& values, const SparseMasks& w, const SparseEpilogue& epilogue,
                            const View& out, void* stream);

// spread: values -> dense [N,k], zeros where nothing is stored; else the stored entries of dense -> values. Elements of
// 2 or 4 bytes.
void sparse_dense_cuda(const View& values, const SparseMasks& w, const View& dense, bool spread, void* stream);

}  // namespace bigmodel
