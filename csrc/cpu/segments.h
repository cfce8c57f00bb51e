// A block of rows of one panel of a panel-CSR matrix (panel_csr.h), as the kernels see it. A row's entries in a panel
// are a segment; segments lie one after another, in the order that the matrix stores them.
#pragma once

#include <cstdint>

#include "../common/view.h"

namespace bigmodel {

constexpr int64_t kBlockRows = 512;  // rows of a block: their sums (128 KiB) stay in the second-level cache

struct Segments {
  const void* values;
  DType dtype;           // of values; nothing to the int8 kernels
  const uint8_t* col;    // values and col: of the whole matrix
  const int32_t* crow;   // segment s has the entries crow[s] up to crow[s + 1]
  const int32_t* order;  // its row in the block is order[s] % 512, so none reaches beyond what a block's sums hold
  int64_t count;         // of segments
  int64_t nnz;           // entries of the whole matrix
};

}  // namespace bigmodel
