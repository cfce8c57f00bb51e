// The pattern of a panel-CSR matrix W [N,K] (panel_csr.h) -> that of its transpose [K,N], rows sorted by length:
//
//   crow_t, col_t, order_t   as in panel_csr.h, in panels of panel_t columns
//   source int32 [nnz]       entry i of the transpose is entry source[i] of W
//
// With it the gradient of the input is the forward product, of permuted values: sums stay in registers, where
// scattering over W's own order stores each of them once an entry.
//
// Limit: nnz bytes read twice and 5 nnz written; rows and columns of one unit of work (a panel of each) stay in cache.
#pragma once

#include <cstdint>

#include "../common/view.h"

namespace bigmodel {

// order may be null. Throws std::invalid_argument if a column or a row is not one of W's.
void transpose_panel_csr(const View& crow, const View& col, const View* order, int64_t n, int64_t k, int64_t panel,
                         const View& crow_t, const View& col_t, const View& order_t, const View& source,
                         int64_t panel_t);

// out[i] = values[source[i]]. Trusts that `source` was written by transpose_panel_csr.
void permute_values(const View& values, const View& source, const View& out);

}  // namespace bigmodel
