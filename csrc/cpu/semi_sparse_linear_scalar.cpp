#include "../common/half.h"
#include "semi_sparse_linear.h"

namespace bigmodel {
namespace {

float load(const void* values, DType dtype, int64_t i) {
  if (dtype == DType::f32) return static_cast<const float*>(values)[i];
  const uint16_t h = static_cast<const uint16_t*>(values)[i];
  return dtype == DType::bf16 ? bf16_to_float(h) : f16_to_float(h);
}

// The input, within the tile, of output n's value `slot` (two to a group).
int64_t input_of(const uint8_t* index, int64_t n, int64_t slot) {
  return slot / 2 * 4 + (index[n * 4 + slot / 4] >> (slot % 4 * 2) & 3);
}

void multiply(const float* x, int64_t rows, const void* values, DType dtype, const uint8_t* index, int64_t count,
              bool add, float* y) {
  for (int64_t i = 0; !add && i < rows * kSemiTile; ++i) y[i] = 0.0f;
  for (int64_t i = 0; i < count; ++i, x += rows * kSemiTile, index += kSemiIndexBytes) {
    for (int64_t slot = 0; slot < kSemiGroups * 2; ++slot) {
      for (int64_t n = 0; n < kSemiTile; ++n) {
        const float w = load(values, dtype, i * kSemiValues + slot * kSemiTile + n);
        const float* from = x + input_of(index, n, slot);
        for (int64_t r = 0; r < rows; ++r) y[r * kSemiTile + n] += from[r * kSemiTile] * w;
      }
    }
  }
}

void expand(const void* values, DType dtype, const uint8_t* index, float* dense) {
  for (int64_t i = 0; i < kSemiTile * kSemiTile; ++i) dense[i] = 0.0f;
  for (int64_t slot = 0; slot < kSemiGroups * 2; ++slot)
    for (int64_t n = 0; n < kSemiTile; ++n)
      dense[input_of(index, n, slot) * kSemiTile + n] += load(values, dtype, slot * kSemiTile + n);
}

void grad_values(const float* x, const float* grad, int64_t rows, const uint8_t* index, bool add, float* dvalues) {
  for (int64_t slot = 0; slot < kSemiGroups * 2; ++slot) {
    for (int64_t n = 0; n < kSemiTile; ++n) {
      const float* from = x + input_of(index, n, slot);
      float sum = add ? dvalues[slot * kSemiTile + n] : 0.0f;
      for (int64_t r = 0; r < rows; ++r) sum += from[r * kSemiTile] * grad[r * kSemiTile + n];
      dvalues[slot * kSemiTile + n] = sum;
    }
  }
}

}  // namespace

const SemiKernels semi_kernels_scalar = {multiply, expand, grad_values};

}  // namespace bigmodel
