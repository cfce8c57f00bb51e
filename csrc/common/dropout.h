// What the fused dropout of every device shares: its arguments and their checks.
//
//   forward    out = residual + keep * scale * act(x + bias)
//   backward   out = keep * scale * act'(x + bias) * grad
//
// Element i of contiguous x is kept if its 16 bits of Philox (philox.h) are >= threshold = floor(65536 p + 1/2);
// scale = 65536 / (65536 - threshold). Computed in float32, rounded once. A dropped element is exactly the residual, or
// +0, whatever the activation gave.
#pragma once

#include <optional>

#include "activation.h"
#include "view.h"

namespace bigmodel {

constexpr uint32_t kDropAll = 65536;  // a threshold no 16-bit draw reaches

struct DropoutArgs {
  const void* x;
  const void* bias;   // [features], may be null
  const void* other;  // forward: the residual, may be null; backward: the gradient
  void* out;
  const uint64_t* seed;  // null keeps every element
  uint64_t first_block;  // Philox block of element 0: 0 except in tests of large indices
  int64_t numel;
  int64_t features;
  DType dtype;       // of x, other and out: float32, bfloat16 or float16
  DType bias_dtype;  // float32 or dtype
  Activation activation;
  uint32_t threshold;
  float scale;
};

// Throws, with the names there are, for any other.
Activation parse_activation(const char* name);

// Checks everything, names what is wrong. `other_name` is "residual" or "grad".
DropoutArgs dropout_args(const View& x, const std::optional<View>& bias, const std::optional<View>& other,
                         const char* other_name, const std::optional<View>& seed, const View& out, double p,
                         const char* activation);

}  // namespace bigmodel
