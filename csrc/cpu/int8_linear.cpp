#include "int8_linear.h"

#include "int8_gemm.h"

namespace bigmodel {

void int8_linear(const View& x, const View& weight, const View& weight_scale, const std::optional<View>& bias,
                 const View& out, const char* activation, const std::optional<View>& input_scale) {
  check_int8_linear(x, weight, weight_scale, bias, out, input_scale);
  const int64_t n = weight_scale.sizes[0], k = x.sizes[x.ndim - 1];
  Int8Gemm gemm = {};
  gemm.m = rows_of(x);
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
