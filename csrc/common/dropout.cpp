#include "dropout.h"

#include <cmath>
#include <cstring>
#include <string>

#include "check.h"

namespace bigmodel {
namespace {

constexpr const char* kActivationNames[kActivationCount] = {"none", "relu",    "leaky_relu", "gelu",
                                                            "silu", "sigmoid", "tanh",       "softplus"};

void check_like(const View& v, const char* name, const View& x) {
  check_dtype(v, name, x.dtype);
  bool same = v.ndim == x.ndim;
  for (int d = 0; same && d < x.ndim; ++d) same = v.sizes[d] == x.sizes[d];
  BIGMODEL_CHECK(same, name, " must have shape ", shape_string(x), ", got ", shape_string(v));
  check_contiguous(v, name);
}

void check_bias(const View& bias, const View& x) {
  BIGMODEL_CHECK(x.ndim >= 1, "x must have at least 1 dimension, got shape ", shape_string(x));
  if (bias.dtype != DType::f32 && bias.dtype != x.dtype)
    throw TypeError(message("bias must be float32 or x's dtype, got ", dtype_name(bias.dtype)));
  const int64_t features = x.sizes[x.ndim - 1];
  BIGMODEL_CHECK(bias.ndim == 1 && bias.sizes[0] == features, "bias must have shape [", features, "], got ",
                 shape_string(bias));
  check_contiguous(bias, "bias");
}

}  // namespace

Activation parse_activation(const char* name) {
  for (int i = 0; i < kActivationCount; ++i)
    if (std::strcmp(name, kActivationNames[i]) == 0) return static_cast<Activation>(i);
  std::string all;
  for (const char* known : kActivationNames) all += message(all.empty() ? "" : ", ", known);
  throw std::invalid_argument(message("activation must be one of ", all, ", got '", name, "'"));
}

DropoutArgs dropout_args(const View& x, const std::optional<View>& bias, const std::optional<View>& other,
                         const char* other_name, const std::optional<View>& seed, const View& out, double p,
                         const char* activation) {
  DropoutArgs args{};
  check_float(x, "x");
  BIGMODEL_CHECK(p >= 0.0 && p <= 1.0, "p must be in [0, 1], got ", p);
  args.activation = parse_activation(activation);
  check_contiguous(x, "x");
  if (bias) check_bias(*bias, x);
  if (other) check_like(*other, other_name, x);
  if (seed) {
    check_dtype(*seed, "seed", DType::i64);
    BIGMODEL_CHECK(seed->ndim == 0, "seed must be a 0-d tensor, got shape ", shape_string(*seed));
  }
  BIGMODEL_CHECK(seed || p == 0.0, "seed must be given when p > 0, got p=", p);
  check_like(out, "out", x);

  args.x = x.data;
  args.bias = bias ? bias->data : nullptr;
  args.other = other ? other->data : nullptr;
  args.out = out.data;
  args.numel = x.numel();
  args.features = x.ndim ? x.sizes[x.ndim - 1] : 1;
  args.dtype = x.dtype;
  args.bias_dtype = bias ? bias->dtype : DType::f32;
  args.threshold = static_cast<uint32_t>(std::floor(p * 65536.0 + 0.5));
  args.seed = args.threshold ? seed->as<const uint64_t>() : nullptr;
  args.scale = args.threshold < kDropAll ? static_cast<float>(65536.0 / (kDropAll - args.threshold)) : 0.0f;
  return args;
}

}  // namespace bigmodel
