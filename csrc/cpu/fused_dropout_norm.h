// Fused dropout and the normalisation of its rows, on the CPU.
//
//   h = residual + dropout(act(x + bias))            (common/dropout.h)
//   y = (h - mean) * rstd * weight + norm_bias       layer: mean of a row of h, rstd = 1 / sqrt(its variance + eps)
//                                                    rms: mean = 0, rstd = 1 / sqrt(mean of the row's squares + eps)
//
// h is rounded to its dtype and y is computed from that, in float32. A block of rows passes from the dropout kernel to
// the normalising one in a cache, so memory is read and written once.
#pragma once

#include "../common/dropout.h"

namespace bigmodel {

struct NormArgs {
  DType dtype;  // of h, y, grad_y, grad_h and dh
  int64_t rows, features;
  const float* weight;     // [features], may be null
  const float* norm_bias;  // [features], may be null
  float eps;
  bool rms;
  void* h;      // forward: the rows to normalise
  void* y;      // forward
  float* mean;  // [rows]; null for rms
  float* rstd;  // [rows]
  // What the dropout kernel reads (x and the residual; either may be null), fetched rows_in_block rows ahead while this
  // block is normalised: else memory rests meanwhile.
  const void* ahead[2];
  // Backward:
  const void* grad_y;
  const void* grad_h;  // may be null: zero
  void* dh;
};

using NormKernel = void (*)(const NormArgs& args, int64_t begin, int64_t end, bool stream);
// dh of rows [begin, end); sums [2][features] += gradients of weight and norm_bias.
using NormBackwardKernel = void (*)(const NormArgs& args, int64_t begin, int64_t end, float* sums);

void norm_rows_scalar(const NormArgs&, int64_t, int64_t, bool);
void norm_rows_backward_scalar(const NormArgs&, int64_t, int64_t, float*);
#if defined(__x86_64__)
void norm_rows_avx2(const NormArgs&, int64_t, int64_t, bool);
void norm_rows_backward_avx2(const NormArgs&, int64_t, int64_t, float*);
void norm_rows_avx512(const NormArgs&, int64_t, int64_t, bool);
void norm_rows_backward_avx512(const NormArgs&, int64_t, int64_t, float*);
#endif

// Run over torch's threads. dropout.out is norm.h.
void fused_dropout_norm(const DropoutArgs& dropout, const NormArgs& norm);

// dropout.other is norm.dh, dropout.out the gradient of x; sums [2 or 3][features]: the gradients of weight and
// norm_bias and, if dropout.bias is given, of bias.
void fused_dropout_norm_backward(const DropoutArgs& dropout, const NormArgs& norm, float* sums);

}  // namespace bigmodel
