// Symmetric int8 quantization per row:
//
//   scale[m] = max_k |x[m,k]| / 127        q[m,k] = round_half_even(x[m,k] * (127 / max_k |x[m,k]|)) in [-127, 127]
//
// Special rows, the same on every instruction set:
//   max |x| < 2^-119 (where 127 / max overflows; all-zero rows too):  q = 0, scale = 0
//   any NaN or infinity in the row:                                   q = 0, scale = NaN, so that whatever is computed
//                                                                     from the row is NaN
#pragma once

#include <cstdint>

#include "../common/view.h"

namespace bigmodel {

constexpr float kSmallestQuantizable = 0x1p-119f;

// One thread's share. `x` [rows, k] of `dtype` with `x_stride` elements between rows; writes q + zero_point as bytes,
// `q_stride` bytes between rows, bytes from k to q_stride set to zero_point. zero_point is 0 (int8) or 128 (the
// unsigned operand of a u8 x s8 multiply).
using QuantizeRowsKernel = void (*)(const void* x, DType dtype, int64_t rows, int64_t k, int64_t x_stride, uint8_t* q,
                                    int64_t q_stride, int zero_point, float* scale);

void quantize_rows_scalar(const void*, DType, int64_t, int64_t, int64_t, uint8_t*, int64_t, int, float*);
void quantize_rows_avx2(const void*, DType, int64_t, int64_t, int64_t, uint8_t*, int64_t, int, float*);
void quantize_rows_avx512(const void*, DType, int64_t, int64_t, int64_t, uint8_t*, int64_t, int, float*);

QuantizeRowsKernel quantize_rows_kernel();  // the active instruction set's

// With a scale that is given, not looked for: q = round_half_even(min(max(x * (1 / s), -127), 127)), scale[m] = s.
// Again a row with NaN or infinity gets scale NaN (its q is arbitrary). A scale in [0, 2^-119) counts as 0: q = 0,
// scale = 0; a negative, infinite or NaN one makes every scale NaN.
struct FixedScale {
  float inverse, scale;
};
FixedScale fixed_scale(float s);

using QuantizeFixedKernel = void (*)(const void* x, DType dtype, int64_t rows, int64_t k, int64_t x_stride, uint8_t* q,
                                     int64_t q_stride, int zero_point, FixedScale fixed, float* scale);

void quantize_fixed_scalar(const void*, DType, int64_t, int64_t, int64_t, uint8_t*, int64_t, int, FixedScale, float*);
void quantize_fixed_avx2(const void*, DType, int64_t, int64_t, int64_t, uint8_t*, int64_t, int, FixedScale, float*);
void quantize_fixed_avx512(const void*, DType, int64_t, int64_t, int64_t, uint8_t*, int64_t, int, FixedScale, float*);

QuantizeFixedKernel quantize_fixed_kernel();

// Checks its arguments, then runs over torch's threads. x [M,K] contiguous, q int8 [M,K], scale float32 [M].
void quantize_rows(const View& x, const View& q, const View& scale);

}  // namespace bigmodel
