// What int8_mm and int8_linear share: activations made unsigned (quantized first if they are float), weights read or
// put in panels of 64 outputs, the work divided over blocks, panels and threads.
#pragma once

#include <cstdint>

#include "../common/int8_args.h"
#include "activate_rows.h"

namespace bigmodel {

// Bytes of a packed weight's panel: the compensations (64 int32), then weights [ceil(K/4), 64, 4].
constexpr int64_t packed_panel_bytes(int64_t k) { return ((k + 3) / 4 + 1) * 256; }

struct Int8Gemm {
  int64_t m, n, k;
  const void* x;         // [m, k] of x_dtype, contiguous
  DType x_dtype;         // int8, or a float type that is quantized row by row
  const int8_t* weight;  // [n, k], or [ceil(n/64), ceil(k/4) + 1, 64, 4] (see formats/int8.py)
  bool packed;
  const float* input_scale;   // the scale of all of x, or null: one is found for each row; only for float x
  const float* weight_scale;  // [n]; this and bias only for float x
  const void* bias;           // [n] of bias_dtype, or null
  DType bias_dtype;
  ActivateRows activate;  // or null; only for float x
  void* out;              // [m, n], contiguous
  DType out_dtype;
};

// Runs over torch's threads. The caller has checked everything, k <= kInt8MaxK included.
void int8_gemm(const Int8Gemm& gemm);

}  // namespace bigmodel
