// Tensors of a linear layer with a compressed weight -> LinearArgs, checked.
#pragma once

#include "../../common/dropout.h"
#include "../../cuda/linear_args.h"
#include "device.h"

namespace bigmodel {

inline LinearArgs linear_args(const View& x, const std::optional<View>& bias, const View& out, const char* activation) {
  check_float(x, "x");
  BIGMODEL_CHECK(x.ndim >= 1, "x must have at least 1 dimension, got shape ", shape_string(x));
  check_contiguous(x, "x");
  check_dtype(out, "out", x.dtype);
  check_contiguous(out, "out");
  LinearArgs a{};
  a.x = x.data;
  a.out = out.data;
  a.k = x.sizes[x.ndim - 1];
  a.n = out.sizes[out.ndim - 1];
  a.m = 1;
  for (int d = 0; d + 1 < x.ndim; ++d) a.m *= x.sizes[d];
  BIGMODEL_CHECK(out.numel() == a.m * a.n, "out must have ", a.m, " rows of ", a.n, ", got ", shape_string(out));
  a.dtype = x.dtype;
  a.activation = parse_activation(activation);
  if (bias) {
    if (bias->dtype != x.dtype) check_dtype(*bias, "bias", DType::f32);
    check_shape(*bias, "bias", {a.n});
    check_contiguous(*bias, "bias");
    a.bias = bias->data;
    a.bias_dtype = bias->dtype;
  }
  return a;
}

}  // namespace bigmodel
