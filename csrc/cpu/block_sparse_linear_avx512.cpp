#include "simd_avx512.h"
// After the vector type:
#include "block_sparse_linear_vector.h"

namespace bigmodel {
namespace {

// 24 sums of the 32 registers; with few rows all of a block's columns at once, so that it is read front to back.
template <DType D, int S>
void multiply_rows(const float* x, int64_t rows, const void* blocks, const int32_t* col, int64_t count, bool add,
                   float* y) {
  constexpr int kAll = S / kLanes, kSome = S == 16 ? 1 : 2;
  const int64_t panel = rows * S;
  while (rows > 0) {
    int64_t done = rows;
    if (S == 16 && rows >= 24) {
      multiply<D, S, S == 16 ? 24 : 12, kSome>(x, panel, blocks, col, count, add, y);
      done = S == 16 ? 24 : 12;
    } else if (rows >= 12 && rows != 16) {  // 16 are two times 8
      multiply<D, S, 12, kSome>(x, panel, blocks, col, count, add, y);
      done = 12;
    } else if (rows >= 8) {
      multiply<D, S, 8, kSome>(x, panel, blocks, col, count, add, y);
      done = 8;
    } else if (rows == 4) {
      multiply<D, S, 4, kAll>(x, panel, blocks, col, count, add, y);
    } else if (rows == 3) {
      multiply<D, S, 3, kAll>(x, panel, blocks, col, count, add, y);
    } else if (rows == 2) {
      multiply<D, S, 2, kAll>(x, panel, blocks, col, count, add, y);
    } else {
      multiply<D, S, 1, kAll>(x, panel, blocks, col, count, add, y);
    }
    rows -= done, x += done * S, y += done * S;
  }
}

void grad_values_entry(const float* x, const float* grad, int64_t rows, int64_t size, bool add, float* dblock) {
  if (size == 16) return grad_values<16, 16, 1>(x, grad, rows, add, dblock);
  if (size == 32) return grad_values<32, 8, 2>(x, grad, rows, add, dblock);
  return grad_values<64, 8, 2>(x, grad, rows, add, dblock);
}

}  // namespace

const BlockKernels block_kernels_avx512 = {multiply_entry, grad_values_entry};

}  // namespace bigmodel
