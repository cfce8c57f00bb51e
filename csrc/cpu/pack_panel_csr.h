// Dense W [N,K] -> panel-CSR (panel_csr.h). An entry is stored where mask [N,K] is not 0, or without a mask where the
// weight is not 0 (NaN is stored, -0 is not). Weights are moved as bits: float32, float64, bfloat16, float16, or int32,
// which stands for 1x4 blocks of int8.
//
// Two passes over W, because where a row's entries lie is known only when all rows before it are counted; between them
// the caller makes room. Limit: reading W twice, and writing the entries.
#pragma once

#include <cstdint>

#include "../common/view.h"

namespace bigmodel {

// One thread's share each, on one row of one panel: `columns` weights, at most 256, and their part of the mask or null.
struct PackKernels {
  // How many are stored.
  int64_t (*count)(const void* weight, DType dtype, const uint8_t* mask, int64_t columns);

  // Writes those that are stored and returns their number; values and col have room for `columns` rounded up to 16, and
  // what is behind the last one becomes undefined.
  int64_t (*fill)(const void* weight, DType dtype, const uint8_t* mask, int64_t columns, void* values, uint8_t* col);
};

extern const PackKernels pack_kernels_scalar, pack_kernels_avx512;

// weight [N,K], mask uint8 [N,K] or null. Writes crow [panels * N + 1], and order [panels * N] (rows sorted by length)
// unless that is null; returns the number of entries.
int64_t count_panel_csr(const View& weight, const View* mask, int64_t panel, const View& crow, const View* order);

// Writes values [nnz] of weight's dtype and col uint8 [nnz], with crow and order as count_panel_csr wrote them. Throws
// std::runtime_error if weight or mask has changed in between.
void fill_panel_csr(const View& weight, const View* mask, int64_t panel, const View& crow, const View* order,
                    const View& values, const View& col);

}  // namespace bigmodel
