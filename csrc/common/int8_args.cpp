#include "int8_args.h"

#include "check.h"

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

void check_int8_linear(const View& x, const View& weight, const View& weight_scale, const std::optional<View>& bias,
                       const View& out, const std::optional<View>& input_scale) {
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
}

void check_int8_mm(const View& a, const View& b, const View& out) {
  check_dtype(a, "a", DType::i8);
  check_ndim(a, "a", 2);
  check_contiguous(a, "a");
  check_dtype(b, "b", DType::i8);
  check_ndim(b, "b", 2);
  check_contiguous(b, "b");
  const int64_t m = a.sizes[0], n = b.sizes[0], k = a.sizes[1];
  BIGMODEL_CHECK(b.sizes[1] == k, "a [M,K] and b [N,K] differ in K: ", shape_string(a), " and ", shape_string(b));
  BIGMODEL_CHECK(k <= kInt8MaxK, "K must be at most ", kInt8MaxK, " for an exact int32 sum, got ", k);
  check_dtype(out, "out", DType::i32);
  check_shape(out, "out", {m, n});
  check_contiguous(out, "out");
}

void check_quantize_rows(const View& x, const View& q, const View& scale) {
  check_float(x, "x");
  check_ndim(x, "x", 2);
  check_contiguous(x, "x");
  const int64_t m = x.sizes[0], k = x.sizes[1];
  check_dtype(q, "q", DType::i8);
  check_ndim(q, "q", 2);
  check_size(q, "q", 0, m);
  check_size(q, "q", 1, k);
  check_contiguous(q, "q");
  check_dtype(scale, "scale", DType::f32);
  check_ndim(scale, "scale", 1);
  check_size(scale, "scale", 0, m);
  check_contiguous(scale, "scale");
}

int64_t rows_of(const View& x) {
  int64_t m = 1;
  for (int d = 0; d + 1 < x.ndim; ++d) m *= x.sizes[d];
  return m;
}

}  // namespace bigmodel
