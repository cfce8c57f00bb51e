// The inner part of every int8 matrix product: rows of activations times one panel of 64 outputs.
//
//   acc[m,n]  = sum_k a[m,k] * b[n,k] - compensation[n]        exact in int32 (sums wrap, the result fits)
//   out[m,n]  = acc[m,n]                                       int32, or
//             = round(act(float(acc[m,n]) * x_scale[m] * weight_scale[n] + bias[n]))
//
// Activations are unsigned (q + 128), weights signed, which is what vpdpbusd multiplies; compensation[n] is
// 128 * sum_k b[n,k]. Each float operation rounds once in the order written, none is fused, and the last rounding is to
// the output's dtype, so that every instruction set gives the same bits (but for those of act, which are as accurate).
#pragma once

#include <cstdint>

#include "../common/view.h"
#include "activate_rows.h"

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
  ActivateRows activate;      // or null for none; only for a float `out`
  void* out;                  // [rows, columns] of int32, float32, bfloat16 or float16
  DType out_dtype;
  int64_t out_stride;  // in elements
  int64_t columns;     // 1 to 64: how many of the panel's outputs exist
  // Hints of what to fetch, never read here: as many weights come after these, and then these bytes.
  const int8_t* next;
  const char* soon;
  int64_t soon_bytes;
};

using Int8PanelKernel = void (*)(const Int8Panel&);

void int8_panel_scalar(const Int8Panel&);
void int8_panel_avx2(const Int8Panel&);
void int8_panel_avx512(const Int8Panel&);
void int8_panel_avx512vnni(const Int8Panel&);

// A weight's rows, `rows` of them (1 to 64) with `stride` bytes between, as a panel's b: [groups, 64, 4]. Columns from
// `rows` on are left alone.
using Int8PackKernel = void (*)(const int8_t* weight, int64_t stride, int64_t rows, int64_t groups, int8_t* b);

void int8_pack_scalar(const int8_t*, int64_t, int64_t, int64_t, int8_t*);
void int8_pack_avx2(const int8_t*, int64_t, int64_t, int64_t, int8_t*);

Int8PanelKernel int8_panel_kernel();  // the active instruction set's

}  // namespace bigmodel
