#include "../../cuda/fused_dropout_norm.h"

#include "device.h"

namespace py = pybind11;

namespace bigmodel {
namespace {

// A contiguous vector of `numel`, float32 or, if given, of another dtype. None gives null.
const View* parameters(const std::optional<View>& v, const char* name, int64_t numel, DType other) {
  if (!v) return nullptr;
  if (v->dtype != other) check_dtype(*v, name, DType::f32);
  check_shape(*v, name, {numel});
  check_contiguous(*v, name);
  return &*v;
}

float* floats(const View& v, const char* name, int64_t numel) {
  check_dtype(v, name, DType::f32);
  BIGMODEL_CHECK(v.numel() == numel, name, " must have shape [", numel, "], got ", shape_string(v));
  check_contiguous(v, name);
  return v.as<float>();
}

void* rows_like(const std::optional<View>& v, const char* name, const View& x) {
  if (!v) return nullptr;
  check_dtype(*v, name, x.dtype);
  BIGMODEL_CHECK(shape_string(*v) == shape_string(x), name, " must have shape ", shape_string(x), ", got ",
                 shape_string(*v));
  check_contiguous(*v, name);
  return v->data;
}

int64_t rows_of(const View& x, int64_t most) {
  BIGMODEL_CHECK(x.ndim >= 1 && x.sizes[x.ndim - 1] >= 1, "x must have at least 1 feature, got shape ",
                 shape_string(x));
  const int64_t features = x.sizes[x.ndim - 1];
  BIGMODEL_CHECK(features <= most, "x must have at most ", most, " features, got ", features);
  return x.numel() / features;
}

NormParameters norm_parameters(const View& x, const std::optional<View>& weight, const std::optional<View>& norm_bias,
                               double eps, bool rms) {
  BIGMODEL_CHECK(eps >= 0.0, "eps must not be negative, got ", eps);
  const int64_t features = x.sizes[x.ndim - 1];
  const View* w = parameters(weight, "weight", features, x.dtype);
  const View* b = parameters(norm_bias, "norm_bias", features, x.dtype);
  return {w ? w->data : nullptr,     b ? b->data : nullptr,   w ? w->dtype : DType::f32,
          b ? b->dtype : DType::f32, static_cast<float>(eps), rms};
}

void forward(py::handle x, py::handle bias, py::handle residual, py::handle seed, py::handle weight,
             py::handle norm_bias, py::handle y, py::handle h, py::handle mean, py::handle rstd, double p,
             const char* activation, bool rms, double eps) {
  const View vx = device_view(x, "x");
  DropoutNormArgs args{};
  args.rows = rows_of(vx, kNormMostFeatures);
  args.dropout = dropout_args(vx, device_view(bias, "bias", vx), device_view(residual, "residual", vx), "residual",
                              device_view(seed, "seed", vx), *device_view(h, "h", vx), p, activation);
  args.norm = norm_parameters(vx, device_view(weight, "weight", vx), device_view(norm_bias, "norm_bias", vx), eps, rms);
  args.y = rows_like(device_view(y, "y", vx), "y", vx);
  args.mean = rms ? nullptr : floats(*device_view(mean, "mean", vx), "mean", args.rows);
  args.rstd = floats(*device_view(rstd, "rstd", vx), "rstd", args.rows);
  void* stream = current_stream(vx);
  py::gil_scoped_release unlocked;
  fused_dropout_norm_cuda(args, vx.device, stream);
}

// The slabs and sums, and the launch.
void run_backward(DropoutNormBackwardArgs& args, const View& x, py::handle slabs, py::handle sums) {
  const int64_t vectors = args.vectors, features = args.dropout.features;
  args.slabs =
      floats(*device_view(slabs, "slabs", x), "slabs", norm_slabs(args.rows, features, x.device) * vectors * features);
  args.sums = floats(*device_view(sums, "sums", x), "sums", vectors * features);
  void* stream = current_stream(x);
  py::gil_scoped_release unlocked;
  fused_dropout_norm_backward_cuda(args, x.device, stream);
}

void backward(py::handle grad_y, py::handle grad_h, py::handle h, py::handle mean, py::handle rstd, py::handle x,
              py::handle bias, py::handle seed, py::handle weight, py::handle dx, py::handle dh, py::handle slabs,
              py::handle sums, double p, const char* activation, bool rms) {
  const View vx = device_view(x, "x");
  DropoutNormBackwardArgs args{};
  args.rows = rows_of(vx, kNormBackwardMostFeatures);
  args.dropout = dropout_args(vx, device_view(bias, "bias", vx), device_view(grad_y, "grad_y", vx), "grad_y",
                              device_view(seed, "seed", vx), *device_view(dx, "dx", vx), p, activation);
  args.norm = norm_parameters(vx, device_view(weight, "weight", vx), std::nullopt, 0.0, rms);
  args.vectors = bias.is_none() ? 2 : 3;
  args.h = rows_like(device_view(h, "h", vx), "h", vx);
  args.grad_h = rows_like(device_view(grad_h, "grad_h", vx), "grad_h", vx);
  args.dh = rows_like(device_view(dh, "dh", vx), "dh", vx);
  args.mean = rms ? nullptr : floats(*device_view(mean, "mean", vx), "mean", args.rows);
  args.rstd = floats(*device_view(rstd, "rstd", vx), "rstd", args.rows);
  run_backward(args, vx, slabs, sums);
}

}  // namespace

void register_fused_dropout_norm_cuda(py::module_& m) {
  m.attr("NORM_MOST_FEATURES") = kNormMostFeatures;
  m.attr("NORM_BACKWARD_MOST_FEATURES") = kNormBackwardMostFeatures;
  m.def("norm_slabs", &norm_slabs);
  m.def("fused_dropout_norm", &forward);
  m.def("fused_dropout_norm_backward", &backward);
  m.def("fused_dropout_backward_bias",
        [](py::handle grad, py::handle x, py::handle bias, py::handle seed, py::handle dx, py::handle slabs,
           py::handle sums, double p, const char* activation) {
          const View vx = device_view(x, "x");
          DropoutNormBackwardArgs args{};
          args.rows = rows_of(vx, kNormBackwardMostFeatures);
          args.dropout = dropout_args(vx, device_view(bias, "bias", vx), device_view(grad, "grad", vx), "grad",
                                      device_view(seed, "seed", vx), *device_view(dx, "dx", vx), p, activation);
          args.vectors = 1;
          run_backward(args, vx, slabs, sums);
        });
}

}  // namespace bigmodel
