// Int8 products on CUDA devices of compute capability 8.0 and later; the formulas, and so every bit but the
// activations' last ones, are those of the CPU (csrc/cpu/int8_linear.h, int8_mm.h, quantize_rows.h).
#pragma once

#include <optional>

#include "../common/view.h"
#include "int8_plan.h"

namespace bigmodel {

// Where and how: `workspace` has what int8_workspace(plan, sizes) says, aligned to 16 bytes; `stream` is a
// cudaStream_t.
struct Int8Launch {
  Int8Plan plan;
  void* workspace;
  size_t workspace_bytes;
  void* stream;
};

// The plan for a device by its index.
Int8Plan plan_int8_cuda(const Int8Sizes& sizes, int device);
void check_plan_cuda(const Int8Plan& plan, const Int8Sizes& sizes, int device);

// All check their arguments as on the CPU (a bias of float64 and a packed weight are refused) and enqueue. Throw
// std::runtime_error if a launch fails.
void int8_linear_cuda(const View& x, const View& weight, const View& weight_scale, const std::optional<View>& bias,
                      const View& out, const char* activation, const std::optional<View>& input_scale,
                      const Int8Launch& launch);
void int8_mm_cuda(const View& a, const View& b, const View& out, const Int8Launch& launch);
void quantize_rows_cuda(const View& x, const View& q, const View& scale, void* stream);

}  // namespace bigmodel
