// The inner part of every int8 matrix product: rows of activations times one panel of 64 outputs.
//
//   acc[m,n]  = sum_k a[m,k] * b[n,k] - compensation[n]        exact in int32 (sums wrap, the result fits)
//   out[m,n]  = acc[m,n]                                       int32, or
//             = round(float(acc[m,n]) * x_scale[m] * weight_scale[n] + bias[n])
//
// Activations are unsigned (q + 128), weights signed, which is what vpdpbusd multiplies; compensation[n] is
// 128 * sum_k b[n,k]. Each float operation rounds once in the order written, none is fused, and the last rounding is to
// the output's dtype, so that every instruction set gives the same bits.
#pragma once

#include <cstdint>

#include "../common/view.h"

namespace bigmodel {

constexpr int64_t kPanelColumns = 64;
constexpr int64_t kPanelMaxGroups = 512;  // 4-element groups of K to a call: 128 KiB of weights, which stay in L2

struct Int8Panel {
  const uint8_t* a;  // [rows, 4 * groups], a_stride bytes between rows
  int64_t a_stride;
  int64_t rows;
  const int8_t* b;  // [groups, 64, 4]
  int64_t groups;
  const int32_t* compensation;  // [64], or null for none
  // A K too long for one call is summed over several, in int32 [rows, 64].
  int32_t* partial;
  bool first, last;      // the first starts from zero instead of `partial`; the last writes `out` instead of `partial`
  const float* x_scale;  // [rows]; this and the next two only for a float `out`
  const float* weight_scale;  // [64]
  const float* bias;          // [64], or null
  void* out;                  // [rows, columns] of int32, float32, bfloat16 or float16
  DType out_dtype;
  int64_t out_stride;  // in elements
  int64_t columns;     // 1 to 64: how many of the panel's outputs exist
  const int8_t* next;  // as many weights are read after these: a hint to fetch them, never read
};

using Int8PanelKernel = void (*)(const Int8Panel&);

void int8_panel_scalar(const Int8Panel&);
void int8_panel_avx2(const Int8Panel&);
void int8_panel_avx512(const Int8Panel&);
void int8_panel_avx512vnni(const Int8Panel&);

Int8PanelKernel int8_panel_kernel();  // the active instruction set's

}  // namespace bigmodel
