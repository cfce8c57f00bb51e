#include "simd_avx2.h"
// After the vector type:
#include "block_sparse_linear_vector.h"

namespace bigmodel {
namespace {

// 8 to 12 sums of the 16 registers.
template <DType D, int S>
void multiply_rows(const float* x, int64_t rows, const void* blocks, const int32_t* col, int64_t count, bool add,
                   float* y) {
  const int64_t panel = rows * S;
  while (rows > 0) {
    int64_t done = rows;
    if (rows >= 12 || rows == 6) {
      multiply<D, S, 6, 2>(x, panel, blocks, col, count, add, y);
      done = 6;
    } else if (rows >= 4) {
      multiply<D, S, 4, 2>(x, panel, blocks, col, count, add, y);
      done = 4;
    } else if (rows == 3) {
      multiply<D, S, 3, 2>(x, panel, blocks, col, count, add, y);
    } else if (rows == 2) {
      multiply<D, S, 2, 2>(x, panel, blocks, col, count, add, y);
    } else {
      multiply<D, S, 1, 2>(x, panel, blocks, col, count, add, y);
    }
    rows -= done, x += done * S, y += done * S;
  }
}

void grad_values_entry(const float* x, const float* grad, int64_t rows, int64_t size, bool add, float* dblock) {
  if (size == 16) return grad_values<16, 4, 2>(x, grad, rows, add, dblock);
  if (size == 32) return grad_values<32, 4, 2>(x, grad, rows, add, dblock);
  return grad_values<64, 4, 2>(x, grad, rows, add, dblock);
}

}  // namespace

const BlockKernels block_kernels_avx2 = {multiply_entry, grad_values_entry};

}  // namespace bigmodel
