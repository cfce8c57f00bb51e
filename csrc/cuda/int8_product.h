// The operands of an int8 product out[m,n] = sum_k a[m,k] b[n,k] in device memory, and what becomes of its sums. Plain
// data, for host and device.
#pragma once

#include <cstdint>

#include "../common/activation.h"
#include "../common/view.h"

namespace bigmodel {

struct Int8Operands {
  const int8_t* a;             // [M,K]
  const int8_t* b;             // [N,K]
  int64_t a_stride, b_stride;  // bytes between rows
  int m, n, k;
  int width;  // 16, 4 or 1: what all addresses and strides are multiples of, so what one load can bring
};

// out[m,n] = the sum itself in int32, or, each operation rounded once in this order,
// round(act(float(sum) * x_scale[m] * weight_scale[n] + bias[n])).
struct Int8Result {
  void* out;  // [M,N], contiguous
  DType dtype;
  const float* x_scale = nullptr;
  const float* weight_scale = nullptr;
  const void* bias = nullptr;
  DType bias_dtype = DType::f32;
  Activation activation = Activation::none;
  bool vectors = false;  // rows of out start at multiples of four elements: four at a time may be stored
};

// The rows that are to be quantized, as quantize_rows.h of the CPU defines it.
struct RowsToQuantize {
  const void* x;  // [rows, k], contiguous
  DType dtype;
  int64_t rows;
  int k;
  const float* fixed = nullptr;  // in device memory: the one scale that is given, or none
  bool vectors = false;          // rows start at multiples of 16 bytes
};

struct QuantizedRows {
  int8_t* q;
  int64_t stride;  // bytes between rows; nobody reads those behind k
  float* scale;
};

}  // namespace bigmodel
