// Fused dropout and the normalisation of its rows on CUDA devices; cpu/fused_dropout_norm.h has the formulas. h and the
// masks are fused_dropout's, bit for bit. Rows stay in registers between their dropout and their norm, so memory is
// read and written once. Sums over rows are added in an order that depends on the sizes and on the number of
// multiprocessors only: the same bits at every run.
#pragma once

#include "../common/dropout.h"

namespace bigmodel {

constexpr int64_t kNormMostFeatures = 16384, kNormBackwardMostFeatures = 8192;  // of a row

struct NormParameters {
  const void *weight, *norm_bias;       // [features], may be null
  DType weight_dtype, norm_bias_dtype;  // float32 or the rows' dtype
  float eps;
  bool rms;
};

struct DropoutNormArgs {
  DropoutArgs dropout;  // out is h
  NormParameters norm;
  int64_t rows;
  void* y;
  float *mean, *rstd;  // [rows]; mean is null for rms
};

struct DropoutNormBackwardArgs {
  DropoutArgs dropout;  // out is dx; other is the gradient of y or, without a norm, of the dropout's result
  NormParameters norm;
  int64_t rows;
  const void *h, *grad_h;  // grad_h may be null
  const float *mean, *rstd;
  int vectors;   // of sums
  void* dh;      // null: there is no norm
  float* slabs;  // [norm_slabs(...)][vectors][features]: working memory
  float*
      sums;  // [vectors][features]: gradients of weight and norm_bias, if there is a norm, and of bias, if there is one
};

// Enqueue on `stream` of `device`; throw std::runtime_error if the launch fails.
void fused_dropout_norm_cuda(const DropoutNormArgs& args, int device, void* stream);
void fused_dropout_norm_backward_cuda(const DropoutNormBackwardArgs& args, int device, void* stream);

// How many partial sums over rows the backward pass makes.
int64_t norm_slabs(int64_t rows, int64_t features, int device);

}  // namespace bigmodel
