#include "int8_linear.h"

#include "../common/check.h"
#include "int8_gemm.h"

namespace bigmodel {
namespace {

void check_weight(const View& weight, int64_t n, int64_t k) {
  check_dtype(weight, "weight", DType::i8);
  if (weight.ndim == 4) {
    check_shape(weight, "packed weight", {(n + 63) / 64, (k + 3) / 4 + 1, 64, 4});
  } else {
    check_shape(weight, "weight", {n, k});
  }
  check_contiguous(weight, "weight");
}

void check_out(const View& out, const View& x, int64_t n) {
  check_dtype(out, "out", x.dtype);
  bool same = out.ndim == x.ndim && out.sizes[x.ndim - 1] == n;
  for (int d = 0; d + 1 < x.ndim; ++d) same = same && out.sizes[d] == x.sizes[d];
  BIGMODEL_CHECK(same, "out must have x's shape ", shape_string(x), " with ", n, " last, got ", shape_string(out));
  check_contiguous(out, "out");
}

}  // namespace

void int8_linear(const View& x, const View& weight, const View& weight_scale, const std::optional<View>& bias,
                 const View& out, const char* activation, const std::optional<View>& input_scale) {
  check_float(x, "x");
  BIGMODEL_CHECK(x.ndim >= 1, "x must have at least 1 dimension, got shape ", shape_string(x));
  check_contiguous(x, "x");
  check_dtype(weight_scale, "weight_scale", DType::f32);
  BIGMODEL_CHECK(weight_scale.ndim == 1, "weight_scale must be [N], got shape ", shape_string(weight_scale));
  check_contiguous(weight_scale, "weight_scale");
  const int64_t n = weight_scale.sizes[0], k = x.sizes[x.ndim - 1];
  check_weight(weight, n, k);
  if (bias) {
    if (!is_float(bias->dtype) && bias->dtype != DType::f64)
      throw TypeError(message("bias must be float32, bfloat16, float16 or float64, got ", dtype_name(bias->dtype)));
    check_shape(*bias, "bias", {n});
    check_contiguous(*bias, "bias");
  }
  if (input_scale) {
    check_dtype(*input_scale, "input_scale", DType::f32);
    check_ndim(*input_scale, "input_scale", 0);
  }
  BIGMODEL_CHECK(k <= kInt8MaxK, "K must be at most ", kInt8MaxK, " for an exact int32 sum, got ", k);
  check_out(out, x, n);
  Int8Gemm gemm = {};
  gemm.m = 1;
  for (int d = 0; d + 1 < x.ndim; ++d) gemm.m *= x.sizes[d];
  gemm.n = n;
  gemm.k = k;
  gemm.x = x.data;
  gemm.x_dtype = x.dtype;
  gemm.weight = weight.as<int8_t>();
  gemm.packed = weight.ndim == 4;
  gemm.weight_scale = weight_scale.as<float>();
  gemm.input_scale = input_scale ? input_scale->as<float>() : nullptr;
  gemm.bias = bias ? bias->data : nullptr;
  gemm.bias_dtype = bias ? bias->dtype : DType::f32;
  gemm.activate = activate_rows(activation);
  gemm.out = out.data;
  gemm.out_dtype = out.dtype;
  int8_gemm(gemm);
}

}  // namespace bigmodel
